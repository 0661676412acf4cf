//! redis's plain `Commands` over its async connections.

use greenhack::await_sync;
use redis::{Cmd, ConnectionLike, Parser, Pipeline, RedisResult, Value, aio, from_redis_value};

/// An async connection that looks like a plain one.
///
/// `redis::Commands`, `Cmd::query`, `Pipeline::query`, iterators of `SCAN` and
/// scripts work with it unchanged.
#[derive(Clone, Debug)]
pub struct Blocking<C> {
    connection: C,
    open: bool,
}

impl<C> Blocking<C> {
    pub fn new(connection: C) -> Self {
        Blocking {
            connection,
            open: true,
        }
    }

    /// Notes an error after which the connection is of no more use.
    fn noted<T>(&mut self, result: RedisResult<T>) -> RedisResult<T> {
        if let Err(error) = &result {
            self.open &= !error.is_unrecoverable_error();
        }
        result
    }
}

impl<C: aio::ConnectionLike> ConnectionLike for Blocking<C> {
    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let result = await_sync(self.connection.req_packed_command(cmd));
        self.noted(result)
    }

    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        let cmds = unpack(packed, 1)?;
        self.req_command(&cmds[0])
    }

    fn req_packed_commands(
        &mut self,
        packed: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut cmds = unpack(packed, offset + count)?;
        let mut pipeline = Pipeline::with_capacity(cmds.len());
        if offset > 0 {
            // A transaction, of which only the last answer is asked for. An
            // async pipeline brings its own `MULTI` and `EXEC`.
            cmds.pop();
            cmds.remove(0);
            pipeline.atomic();
        }
        for cmd in cmds {
            pipeline.add_command(cmd);
        }
        let answers = self
            .connection
            .req_packed_commands(&pipeline, offset, count);
        let result = await_sync(answers);
        self.noted(result)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").exec(self).is_ok()
    }

    fn is_open(&self) -> bool {
        self.open
    }
}

/// Takes commands apart that the plain half of the library has encoded for its
/// own socket. In the protocol a command looks like an answer: an array of
/// strings.
fn unpack(mut packed: &[u8], count: usize) -> RedisResult<Vec<Cmd>> {
    let mut parser = Parser::new();
    let commands = (0..count).map(|_| {
        let arguments: Vec<Vec<u8>> = from_redis_value(parser.parse_value(&mut packed)?)?;
        let mut cmd = Cmd::new();
        cmd.arg(arguments);
        Ok(cmd)
    });
    commands.collect()
}
