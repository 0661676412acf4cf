struct View<'a>(&'a str);

#[greenhack::entry]
fn hidden(view: View) -> usize {
    view.0.len()
}

fn main() {
    let _ = hidden(View(""));
}
