//! scratch
use reverie_text::*;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let stack: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let mode = std::env::args().nth(3).unwrap();
    let body = match mode.as_str() { "list" => format!("{}ns.x{}", "[".repeat(20), "]".repeat(20)), "map" => format!("{}ns.x{}", "{'a':".repeat(20), "}".repeat(20)), "add" => "ns.x + [1]".into(), "print" => format!("{}ns.x{}", "[".repeat(20), "]".repeat(20)), _ => "{'a': ns.x}.items()".into() };
    let tail = if mode == "print" { "{{ ns.x }}" } else { "" };
    let src = format!("{{% set ns = namespace(x=[]) %}}{{% for i in range({n}) %}}{{% set ns.x = {body} %}}{{% endfor %}}{tail}");
    std::thread::Builder::new().stack_size(stack * 1024).spawn(move || {
        let t = ChatTemplate::new(&src, SpecialTokens::none()).unwrap();
        println!("{:?}", t.render(&RenderRequest::default()).map(|s| s.len()));
    }).unwrap().join().unwrap();
}
