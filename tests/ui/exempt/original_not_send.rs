use std::rc::Rc;

#[greenhack::exempt]
async fn fetch(key: Rc<u8>) -> u8 {
    std::future::ready(()).await;
    *key
}

fn main() {
    // The plain one may be called in a run, which is `Send`.
    tokio::spawn(greenhack::run_sync(|| fetch(Rc::new(1))));
    tokio::spawn(async { fetch_async(Rc::new(1)).await });
}
