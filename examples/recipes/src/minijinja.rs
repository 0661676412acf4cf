//! Template helpers that query the database, in plain Diesel.

use std::fmt::Display;
use std::sync::Arc;

use diesel::prelude::*;
use greenhack::await_sync;
use greenhack::diesel::deadpool::Pool;
use greenhack::diesel::{Pooled, SqliteConnection};
use minijinja::value::{Object, Value};
use minijinja::{Environment, Error, ErrorKind};

diesel::table! {
    orders (id) {
        id -> Integer,
        guest -> Text,
        dish -> Text,
    }
}

/// An environment in which templates can say `orders_of(name)`, and
/// `guest(name).orders`.
pub fn environment(pool: &Pool<SqliteConnection>) -> Environment<'static> {
    let mut env = Environment::new();
    let shared = pool.clone();
    env.add_function("orders_of", move |guest: &str| orders_of(&shared, guest));
    let shared = pool.clone();
    env.add_function("guest", move |name: &str| {
        Value::from_object(Guest {
            name: name.to_owned(),
            pool: shared.clone(),
        })
    });
    env
}

/// The dishes that a guest has ordered. The template waits in here.
fn orders_of(pool: &Pool<SqliteConnection>, guest: &str) -> Result<Vec<String>, Error> {
    let mut db: Pooled<_> = await_sync(pool.get()).map_err(failed)?;
    orders::table
        .filter(orders::guest.eq(guest))
        .order(orders::id)
        .select(orders::dish)
        .load(&mut db)
        .map_err(failed)
}

fn failed(error: impl Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, error.to_string())
}

/// A value that asks the database when a template looks at it.
///
/// This is the form of a lazy value that may wait. One that waits in its
/// `serde::Serialize` may not: minijinja has a thread-local set meanwhile.
pub struct Guest {
    pub name: String,
    pub pool: Pool<SqliteConnection>,
}

impl Object for Guest {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "name" => Some(Value::from(&*self.name)),
            // An error ends the rendering where the value is used.
            "orders" => Some(match orders_of(&self.pool, &self.name) {
                Ok(dishes) => Value::from(dishes),
                Err(error) => Value::from(error),
            }),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("name", &self.name).finish()
    }
}
