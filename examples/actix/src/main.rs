//! Plain handlers in actix-web, in place: its workers are threads that each
//! drive a runtime of their own, so that a run need not hop anywhere.
//!
//! - Run it: `cargo run -p actix`. It serves until ctrl-c.
//! - Try it: `curl localhost:3000/soup/Ada` and `curl localhost:3000/turn`.
//! - It prints its address. Answers are like `soup for Ada, in place: true`.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::thread::{self, ThreadId};
use std::time::Duration;

use actix_web::dev::{Server, Service, ServiceRequest};
use actix_web::web::{Data, Path, ReqData};
use actix_web::{App, HttpMessage, HttpRequest, HttpResponse, HttpServer, get};
use greenhack::time::sleep;

#[actix_web::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000")?;
    println!("Try `curl {}/soup/Ada`.", listener.local_addr()?);
    serve(listener)?.await
}

fn serve(listener: TcpListener) -> io::Result<Server> {
    let app = || {
        App::new()
            // Made on each worker, and never shared: a `Cell` will do.
            .app_data(Data::new(Cell::new(0_u32)))
            .wrap_fn(|request, app| {
                note_thread(&request);
                app.call(request)
            })
            .service(soup)
            .service(turn)
    };
    Ok(HttpServer::new(app).workers(2).listen(listener)?.run())
}

/// Waits in the middle of a plain function.
#[get("/soup/{guest}")]
#[greenhack::entry]
fn soup(guest: Path<String>, task: ReqData<ThreadId>) -> String {
    sleep(Duration::from_millis(1));
    let in_place = thread::current().id() == *task;
    format!("soup for {guest}, in place: {in_place}")
}

/// Much of actix isn't `Send`. `local` runs are not either: they can't hop, by
/// their type.
#[get("/turn")]
#[greenhack::entry(local)]
fn turn(request: HttpRequest, turns: Data<Cell<u32>>) -> HttpResponse {
    let turn = turns.replace(turns.get() + 1);
    sleep(Duration::from_millis(1));
    let in_place = request.extensions().get() == Some(&thread::current().id());
    HttpResponse::Ok().body(format!("turn {turn}, in place: {in_place}"))
}

/// Notes where the task of the connection runs, for the handlers to compare.
fn note_thread(request: &ServiceRequest) {
    request.extensions_mut().insert(thread::current().id());
}

#[cfg(test)]
mod tests;
