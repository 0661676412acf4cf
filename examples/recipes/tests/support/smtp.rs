//! A mail server, as far as the client's plain conversation goes.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

/// What decides on a mail, when all of it is there.
pub trait Policy: Fn(String) -> Self::Verdict + Send + Sync + 'static {
    type Verdict: Future<Output = &'static str> + Send;
}

impl<F, V> Policy for F
where
    F: Fn(String) -> V + Send + Sync + 'static,
    V: Future<Output = &'static str> + Send,
{
    type Verdict = V;
}

/// Serves, as tasks of the current runtime. `policy` gets the text of each mail
/// and returns the answer.
pub async fn serve(policy: impl Policy) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let policy = Arc::new(policy);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let policy = policy.clone();
            // An error means that the client has gone.
            tokio::spawn(async move {
                let _ = converse(stream, &*policy).await;
            });
        }
    });
    address
}

async fn converse(stream: TcpStream, policy: &impl Policy) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"220 ready\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let verb = line.split([' ', ':']).next().unwrap_or_default();
        let answer = match verb.to_uppercase().as_str() {
            "EHLO" => "250 localhost",
            "MAIL" | "RCPT" | "NOOP" => "250 ok",
            "DATA" => {
                writer.write_all(b"354 go on\r\n").await?;
                policy(mail(&mut lines).await?).await
            }
            "QUIT" => return writer.write_all(b"221 bye\r\n").await,
            _ => "500 what?",
        };
        writer.write_all(answer.as_bytes()).await?;
        writer.write_all(b"\r\n").await?;
    }
    Ok(())
}

async fn mail(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> std::io::Result<String> {
    let mut text = String::new();
    while let Some(line) = lines.next_line().await? {
        if line == "." {
            return Ok(text);
        }
        text.push_str(&line);
        text.push('\n');
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}
