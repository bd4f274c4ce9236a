//! The header `x-causal-token`, where it is no good; what it is good for is tested beside the replicas.

use anyhow::{Context, Result, ensure};
use leaderpool::CausalToken;
use leaderpool::patroni::{SystemId, Timeline};
use serde_json::json;

use crate::app::{App, JSON, TOKEN};

pub(crate) async fn bad_tokens(app: &App) -> Result<()> {
    let good = app.post(&json!({"kind": "token"})).await?.token()?;
    let mut damaged = good.clone();
    damaged.replace_range(10..11, if &good[10..11] == "A" { "B" } else { "A" });
    let (short, empty) = (&good[..good.len() - 1], format!("{good},"));
    for (token, why) in [
        ("", "does not start with lp1_"),
        ("please", "does not start with lp1_"),
        (short, "wrong length"),
        (&damaged, "checksum"),
        (&empty, "does not start with lp1_"),
        ("lp1_ !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", "wrong length"),
    ] {
        for path in ["/events", "/events/1", "/events?fresh=leader"] {
            let answer = app.send("GET", path, &[(TOKEN, token)], "").await?;
            answer.is_error(400, "invalid_token").with_context(|| token.to_owned())?;
            let message = answer.json()?["error"]["message"].to_string();
            ensure!(message.contains(why) && message.contains(TOKEN), "{token}: {message}");
        }
    }
    let ours: CausalToken = good.parse()?;
    let foreign = CausalToken { system_id: SystemId(1), ..ours }.to_string();
    let both = format!("{good},{foreign}");
    for token in [&foreign, &both] {
        let answer = app.send("GET", "/events", &[(TOKEN, token)], "").await?;
        answer.is_error(409, "token_other_cluster")?;
    }
    // Of a timeline that is still to come: nobody can tell yet, and it may help to ask again.
    let early = CausalToken { timeline: Timeline(ours.timeline.0 + 1), ..ours }.to_string();
    let answer = app.send("GET", "/events", &[(TOKEN, &early)], "").await?;
    answer.is_error(503, "token_unknown")?;
    // A write needs none, and does not mind.
    let posted =
        app.send("POST", "/events", &[JSON, (TOKEN, &foreign)], r#"{"kind":"token"}"#).await?;
    ensure!(posted.status == 201, "{posted:?}");
    Ok(())
}
