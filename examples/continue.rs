//! Continues a text with the embedded model, or with the model given as the first argument.

use std::io::Write;

use reverie::{GenerateSpec, Loader};

fn main() -> reverie::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| reverie::EMBEDDED.to_owned());
    let model = Loader::default().load(&name)?;
    let mut session = model.session();
    let spec =
        GenerateSpec { max_tokens: Some(60), sampler: model.voice().sampler_defaults(), ..GenerateSpec::default() };
    let prompt = "/// Returns the number of elements in the vector.\n";
    print!("{prompt}");
    for delta in model.generate(&mut session, prompt, spec)? {
        print!("{}", delta?.text);
        // A reader that has gone away ends the loop at the next print.
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
