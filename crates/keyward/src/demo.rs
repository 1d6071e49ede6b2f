pub async fn run(_: Option<std::path::PathBuf>, _: u16, _: Option<std::path::PathBuf>) -> Result<(), crate::error::Failure> { Ok(()) }
