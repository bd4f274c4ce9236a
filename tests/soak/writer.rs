//! The process that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool::{CausalToken, Config, LeaderPool, OperationError, TxOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::account::{Account, Answer};
use crate::{CONFIG, SOCKET, WORKERS, pairs};

const INSERT: &str = "INSERT INTO soak VALUES ($1, $2)";

/// After so many pairs it tells how far it is.
const NEWS: usize = 10_000;

/// Writes, has each write read, and prints the account.
pub fn run() -> Result<()> {
    let account = tokio::runtime::Runtime::new()?.block_on(write_all(pairs()?))?;
    println!("{}", serde_json::to_string(&account)?);
    Ok(())
}

async fn write_all(pairs: usize) -> Result<Account> {
    let pool = LeaderPool::connect(Config::from_file(CONFIG)?).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let (pool, next) = (pool.clone(), Arc::clone(&next));
        workers.spawn(async move {
            let mut reader = connect().await?;
            let mut account = Account::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= pairs {
                    return anyhow::Ok(account);
                }
                if number > 0 && number.is_multiple_of(NEWS) {
                    println!("{number} of {pairs} pairs");
                }
                let token = write(&pool, number, worker).await?;
                let answer = ask(&mut reader, number, token).await;
                account.add(&answer.with_context(|| format!("the read of {number}"))?);
            }
        });
    }
    let mut account = Account::default();
    while let Some(worker) = workers.join_next().await {
        account.join(worker??);
    }
    pool.close().await?;
    Ok(account)
}

/// The reader starts beside this process.
async fn connect() -> Result<BufReader<UnixStream>> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(SOCKET).await {
            Ok(stream) => return Ok(BufReader::new(stream)),
            Err(error) if Instant::now() >= until => return Err(error).context("the reader"),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// One by a statement, the next by a closure.
async fn write(pool: &LeaderPool, number: usize, worker: usize) -> Result<CausalToken> {
    let (id, worker) = (i64::try_from(number)?, i64::try_from(worker)?);
    let options = TxOptions::new();
    let token = if number.is_multiple_of(2) {
        let done = pool.execute_write_with(&options, INSERT, &[&id, &worker]).await?;
        ensure!(done.value == 1);
        done.token
    } else {
        let work = |tx: leaderpool::Tx| async move {
            tx.execute(INSERT, &[&id, &-1_i64]).await?;
            tx.execute("UPDATE soak SET worker = $2 WHERE id = $1", &[&id, &worker]).await?;
            Ok::<_, OperationError>(())
        };
        pool.transaction_with(&options, work).await?.token
    };
    token.context("a write without a token")
}

async fn ask(
    reader: &mut BufReader<UnixStream>,
    number: usize,
    token: CausalToken,
) -> Result<Answer> {
    reader.write_all(format!("{number} {token}\n").as_bytes()).await?;
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    serde_json::from_str(&line).with_context(|| format!("it says {line:?}"))
}
