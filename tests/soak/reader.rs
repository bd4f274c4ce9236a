//! The process that reads.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool::{CausalToken, Config, LeaderPool, OperationError, ReadPolicy, TxOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use crate::account::Answer;
use crate::{CONFIG, SOCKET, WORKERS};

const LOOK: &str = "SELECT count(*), pg_is_in_recovery() FROM soak WHERE id = $1";
/// Each so many rows are looked for without their token too.
const CONTROL: i64 = 50;

/// Answers until it is ended.
pub fn run() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(serve())
}

async fn serve() -> Result<()> {
    let mut config = Config::from_file(CONFIG)?;
    // Readers that wait for a replica hold a connection to it.
    config.pool.max_size = WORKERS;
    config.pool.read_timeout = Duration::from_secs(30);
    let pool = LeaderPool::connect(config).await?;
    let listener = UnixListener::bind(SOCKET)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            if let Err(error) = answer_all(&pool, &mut stream).await {
                // To the writer, which ends by it.
                let words = format!("{error:#}\n");
                let _ = stream.write_all(words.as_bytes()).await;
            }
        });
    }
}

async fn answer_all(pool: &LeaderPool, stream: &mut BufReader<UnixStream>) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let (id, token) = line.trim_end().split_once(' ').context("no token")?;
        let answer = look(pool, id.parse()?, token.parse()?).await?;
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        stream.write_all(text.as_bytes()).await?;
    }
}

/// By the number, all ways to read after a token take turns.
async fn look(pool: &LeaderPool, id: i64, token: CausalToken) -> Result<Answer> {
    let without_token = if id % CONTROL == 0 {
        let rows = pool.query_read_with(ReadPolicy::any().or_error(), LOOK, &[&id]).await?;
        Some(rows[0].get::<_, i64>(0) == 1)
    } else {
        None
    };
    let after = ReadPolicy::after(token);
    let policy = match id % 3 {
        0 => after,
        1 => after.patience(Duration::from_millis(250)),
        _ => after.or_wait(),
    };
    let began = Instant::now();
    let mut waited = None;
    let row = match id % 4 {
        0 => {
            let options = TxOptions::new().read_only(policy);
            let work = |tx: leaderpool::Tx| {
                waited.get_or_insert(began.elapsed());
                async move { tx.query_one(LOOK, &[&id]).await }
            };
            let done = pool.transaction_with::<_, OperationError, _, _>(&options, work).await?;
            done.value
        }
        1 => {
            let mut rows = pool.query_read_with(policy, LOOK, &[&id]).await?;
            ensure!(rows.len() == 1);
            rows.remove(0)
        }
        _ => {
            let client = pool.read_with(policy).await?;
            waited = Some(began.elapsed());
            let statement = client.prepare_cached(LOOK).await?;
            client.query_one(&statement, &[&id]).await?
        }
    };
    let waited = waited.unwrap_or_else(|| began.elapsed());
    Ok(Answer {
        fresh: row.get::<_, i64>(0) == 1,
        by_replica: row.get(1),
        waited_us: u64::try_from(waited.as_micros()).unwrap_or(u64::MAX),
        without_token,
    })
}
