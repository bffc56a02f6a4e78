//! The HTTP port of a broker that does not know yet who it is: probes, scrapers and people see what it waits for.

use std::net::{self, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;

use super::load::Load;
use super::{Config, Error, Listening, Served, Watched, listen};

/// See the module.
pub struct Probes {
    served: Served,
    address: SocketAddr,
    /// The same port, which stays open when nobody serves it any more.
    port: net::TcpListener,
}

impl Probes {
    /// Opens and serves the port.
    ///
    /// # Errors
    /// If its address cannot be listened on.
    pub fn open(config: &Config, watched: Watched) -> Result<Self, Error> {
        let (setting, address) = ("api.http_listen", config.http_listen);
        let fail = |source| Error::Listen { setting, address, source };
        let (listener, address) = listen(setting, address)?;
        let listener = listener.into_std().map_err(fail)?;
        let port = listener.try_clone().map_err(fail)?;
        let listener = TcpListener::from_std(listener).map_err(fail)?;
        let http =
            Listening::http(config, watched, Some(listener), config.grpc_listen.port(), &Load::default())?;
        Ok(Probes { served: http.serve("http listener"), address, port })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends connections, of which what is in flight has until the `deadline`, and gives the port, which who connects meanwhile
    /// finds open.
    ///
    /// # Errors
    /// The system does not let it be served again.
    pub async fn end(self, deadline: Duration) -> Result<TcpListener, Error> {
        let Probes { served, address, port } = self;
        served.end(deadline).await;
        let fail = |source| Error::Listen { setting: "api.http_listen", address, source };
        TcpListener::from_std(port).map_err(fail)
    }
}
