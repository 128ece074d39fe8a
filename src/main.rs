//! The porch: arguments in, exit codes out. It holds no logic of its own.

mod cmd;

use std::process::ExitCode;

fn main() -> ExitCode {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // A rotten index is reported and rebuilt; how the database noticed is part of that report.
        if !reverie::rooms::memory::panics_are_findings() {
            told(panic);
        }
    }));
    let cli = match cmd::parse() {
        Ok(cli) => cli,
        Err(help) => help.exit(),
    };
    match cmd::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if cmd::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", cmd::paragraph(&e));
            ExitCode::from(cmd::exit_code(&e))
        }
    }
}
