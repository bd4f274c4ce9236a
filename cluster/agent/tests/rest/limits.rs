//! Clients that are old, slow, greedy or broken.

use std::time::Duration;

use anyhow::{Result, ensure};
use leaderpool_agent::rest::RestSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, MINUTE, read, settings, talk};

#[tokio::test]
async fn checks_as_haproxy_sends_them() -> Result<()> {
    let bed = Bed::start(settings()).await?;
    for (text, code) in [
        ("OPTIONS /replica HTTP/1.0\r\n\r\n", 200),
        ("OPTIONS /master HTTP/1.0\r\n\r\n", 503),
        ("HEAD /replica HTTP/1.0\r\n\r\n", 200),
        ("OPTIONS /replica HTTP/1.1\r\nHost: pg1\r\nConnection: close\r\n\r\n", 200),
        ("OPTIONS * HTTP/1.0\r\n\r\n", 503),
        ("GET http://pg1:8008/replica HTTP/1.1\r\nHost: pg1\r\n\r\n", 200),
    ] {
        let reply = bed.send(text).await?;
        ensure!(reply.code == code, "{text:?}: {}", reply.head);
        ensure!(reply.body.is_empty() != text.starts_with("GET"), "{text:?}: {}", reply.body);
        if text.contains("HTTP/1.0") {
            ensure!(reply.head.starts_with("http/1.0 "), "{}", reply.head);
        }
    }
    // One that closes its side behind the question still gets its answer.
    let mut stream = bed.connect().await?;
    stream.write_all(b"GET /replica HTTP/1.0\r\n\r\n").await?;
    stream.shutdown().await?;
    ensure!(read(stream).await?.code == 200);
    bed.server.shutdown().await;
    ensure!(bed.connect().await.is_err(), "nobody listens any more");
    Ok(())
}

#[tokio::test]
async fn garbage_and_large_bodies_are_refused() -> Result<()> {
    let bed = Bed::start(RestSettings { max_body: 1000, ..settings() }).await?;
    for text in ["\x16\x03\x01\x02 no HTTP\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let code = bed.send(text).await.map(|reply| reply.code).unwrap_or(400);
        ensure!(code == 400, "{text:?}: {code}");
    }
    for (body, code) in [("xx", 400), ("[]", 400), ("{}", 400), ("", 400), ("{\"a\":\n", 400)] {
        let reply = bed.ask("PATCH", "/config", body).await?;
        ensure!(reply.code == code, "{body:?}: {}", reply.head);
    }
    let reply = bed.send("PATCH /config HTTP/1.0\r\n\r\n").await?;
    ensure!(reply.code == 411, "{}", reply.head);
    ensure!(bed.ask("POST", "/primary", "{}").await?.code == 501);

    // 100 MiB that are announced are not waited for.
    let announced = "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n";
    ensure!(bed.send(announced).await?.code == 413);
    // And those that are not are cut off at the limit.
    let mut stream = bed.connect().await?;
    stream
        .write_all(b"PATCH /config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    let mut head = [0; 12];
    let (mut from, mut to) = stream.split();
    tokio::select! {
        result = from.read_exact(&mut head) => { result?; }
        () = async { while to.write_all(chunk.as_bytes()).await.is_ok() { sent += 1; } sleep(MINUTE).await } => {}
    }
    ensure!(&head == b"HTTP/1.1 413", "{:?}", String::from_utf8_lossy(&head));
    ensure!(sent < 800, "it took {sent} chunks of 64 KiB");
    // A header without end.
    let mut stream = bed.connect().await?;
    let mut sent = 0;
    while sent < 2000 && stream.write_all("x-y: z\r\n".repeat(1000).as_bytes()).await.is_ok() {
        sent += 1;
    }
    ensure!(sent < 2000, "endless headers were taken");
    Ok(())
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_keep_nobody_out() -> Result<()> {
    // Two connections from one address, of eight.
    let bed = Bed::start(RestSettings { max_connections: 8, ..settings() }).await?;
    let began = Instant::now();
    let mut silent = bed.connect().await?;
    let mut slow = bed.connect().await?;
    slow.write_all(b"PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").await?;
    sleep(Duration::from_millis(100)).await;
    // A third from there is turned away, one from elsewhere is served.
    ensure!(bed.send("GET /replica HTTP/1.0\r\n\r\n").await.is_err());
    let other = bed.connect_from([127, 0, 0, 2]).await?;
    ensure!(talk(other, "GET /replica HTTP/1.0\r\n\r\n").await?.code == 200);
    let reply = read(slow).await?;
    ensure!(reply.code == 408, "{}", reply.head);
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(MINUTE, silent.read_to_end(&mut rest)).await?;
    ensure!(began.elapsed() < Duration::from_secs(20), "bounded: {:?}", began.elapsed());
    ensure!(bed.send("GET /replica HTTP/1.0\r\n\r\n").await?.code == 200);

    // Everyone at once, from everywhere: those that ask properly get their answers in the end.
    let mut silent = Vec::new();
    for address in 1..=12 {
        silent.push(bed.connect_from([127, 0, 1, address]).await?);
    }
    ensure!(bed.send("GET /replica HTTP/1.0\r\n\r\n").await?.code == 200);
    Ok(())
}

/// A client that asks and never reads does not hold its connection for ever.
#[tokio::test]
async fn an_answer_that_is_not_read_ends() -> Result<()> {
    let bed = Bed::start(RestSettings { max_connections: 4, ..settings() }).await?;
    // More than the sockets' buffers hold.
    bed.status.send_modify(|status| {
        let mut large = (**status).clone();
        large.tags.insert("note".into(), "x".repeat(32 << 20).into());
        *status = large.into();
    });
    let mut stream = bed.connect().await?;
    stream.write_all(b"GET /patroni HTTP/1.0\r\n\r\n").await?;
    // The only one that this address may have.
    let served = async {
        while bed.send("OPTIONS /replica HTTP/1.0\r\n\r\n").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(MINUTE, served).await?;
    drop(stream);
    Ok(())
}
