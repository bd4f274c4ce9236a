//! The state of things in sentences, for errors and the report.

use crate::config::Config;
use crate::topology::{ClusterView, LeaderState, MemberHealth, SourceKind};

/// What is known of the leader, in a sentence.
pub(crate) fn describe_leader(view: &ClusterView) -> String {
    let mut text = match &view.leader {
        LeaderState::Admitted { member, .. } => format!("{member} leads"),
        LeaderState::Unknown { .. } if view.source == SourceKind::Fixed => {
            "no host is known to be the only primary on the newest timeline".to_owned()
        }
        LeaderState::Unknown { .. } => "no member holds the leader key".to_owned(),
        LeaderState::Claimed { member, .. } => {
            let asked = view.hold.as_ref().filter(|hold| hold.leader == *member);
            let why = match view.members.get(member).map(|member| &member.health) {
                None => "no such member is known".to_owned(),
                Some(MemberHealth::Unknown) => "it was not asked yet".to_owned(),
                Some(MemberHealth::Up(report)) if report.in_recovery => {
                    "it is still in recovery".to_owned()
                }
                Some(MemberHealth::Up(_)) if asked.is_some() => {
                    let to = asked.and_then(|hold| hold.to.as_deref()).unwrap_or("another member");
                    format!("it is asked to give it to {to}: writes are held for some seconds")
                }
                Some(MemberHealth::Up(_)) => "it has not proved itself since".to_owned(),
                Some(MemberHealth::Down { error, .. }) => error.clone(),
                Some(MemberHealth::Refused(refusal)) => refusal.to_string(),
            };
            format!("{member} holds the leader key, but {why}")
        }
    };
    if let Some(refusal) = &view.refused {
        text = refusal.to_string();
    }
    if let Some((_, reason)) = &view.degraded {
        text.push_str(&format!("; {} does not answer ({reason})", view.source));
    }
    text
}

/// Everything that was tried, and what came of it.
pub(crate) fn describe_unreachable(view: &ClusterView, config: &Config) -> String {
    let mut reasons = Vec::new();
    match &view.degraded {
        Some((_, reason)) => reasons.push(reason.clone()),
        None if view.contact_at.is_none() => {
            let endpoints = [
                config.etcd.as_ref().map(|etcd| &etcd.endpoints),
                config.rest.as_ref().map(|rest| &rest.endpoints),
            ];
            for endpoint in endpoints.into_iter().flatten().flatten() {
                reasons.push(format!("{endpoint}: no answer yet"));
            }
        }
        None => {}
    }
    for member in view.members.values() {
        let why = match &member.health {
            MemberHealth::Down { error, .. } => error.clone(),
            MemberHealth::Refused(refusal) => refusal.to_string(),
            MemberHealth::Unknown => "no answer yet".to_owned(),
            MemberHealth::Up(_) => continue,
        };
        let address = member.address.to_string();
        reasons.push(if why.contains(&address) {
            format!("member {}: {why}", member.name)
        } else {
            format!("member {} at {address}: {why}", member.name)
        });
    }
    if view.members.is_empty() && view.degraded.is_none() && view.contact_at.is_some() {
        reasons.push(format!(
            "{} answers, but holds no members of cluster {:?} in namespace {:?} \
             (cluster.scope, cluster.namespace)",
            view.source, config.cluster.scope, config.cluster.namespace
        ));
    }
    reasons.extend(view.rejected.iter().map(|(key, reason)| format!("key {key}: {reason}")));
    reasons.join("; ")
}
