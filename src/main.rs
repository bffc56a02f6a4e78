//! The `streambus` command.

fn main() {
    let sources =
        streambus::config::Sources { environment: std::env::vars_os().collect(), ..Default::default() };
    let config = match streambus::config::load(sources) {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            std::process::exit(2);
        }
    };
    let threads = config.server.effective_worker_threads();
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    if let Err(e) = rt.block_on(streambus::server::run(config)) {
        eprintln!("{e:?}");
    }
}
