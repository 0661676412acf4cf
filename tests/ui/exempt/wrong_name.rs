#[greenhack::exempt(async = "fetch_later")]
async fn string() {}

#[greenhack::exempt(async = self::later)]
async fn path() {}

#[greenhack::exempt(async)]
async fn nothing() {}

#[greenhack::exempt(async = )]
async fn no_value() {}

fn main() {
    string();
    path();
    nothing();
    no_value();
}
