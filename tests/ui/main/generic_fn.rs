#[greenhack::main]
fn main<T: Default>() -> Result<(), ()>
where
    T: Clone,
{
    Ok(())
}
