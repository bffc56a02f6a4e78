//! The `streambus` command.

fn main() -> std::process::ExitCode {
    streambus::cli::main()
}
