//! Asking a broker's HTTP port.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest answer that is read, in bytes: far above what a broker with all its series says.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// The body of `GET path` at `address`, a host and a port.
///
/// # Errors
/// The broker is not reached, does not answer in time, or refuses.
pub(super) async fn get(address: &str, path: &str, deadline: Duration) -> anyhow::Result<String> {
    let answer = timeout(deadline, ask(address, path))
        .await
        .with_context(|| format!("{address} does not answer {path} within {deadline:?}"))?
        .with_context(|| format!("{address} cannot be asked for {path}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("the answer of {address} to {path} is cut off"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("{address} refused {path}: {}: {body}", head.lines().next().unwrap_or_default()),
    }
}

async fn ask(address: &str, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}
