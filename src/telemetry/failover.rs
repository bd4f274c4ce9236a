//! One failover as a story: from the loss of a leader to the first write that the next one acknowledged.
//!
//! [`Failover`] takes in what happened and when, and says what to do with the spans. It always comes to an
//! end: by the first write, by the lack of one, by another failover, or with the pool.

use std::time::Duration;

use tokio::time::Instant;

use super::Kind;
use crate::topology::Epoch;

/// After this long without a write the story ends without one.
pub(super) const FIRST_WRITE_LIMIT: Duration = Duration::from_secs(10);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// The leader key names this member.
    Candidate(String),
    /// The leader is lost; in favour of another, where the key says so.
    Lost { leader: String, reason: String, moved_to: Option<String> },
    /// Writes go to this member.
    Admitted { leader: String, epoch: Epoch },
    /// The admitted leader acknowledged its first write.
    FirstWrite { at: Instant },
    /// Time has passed.
    Tick,
    /// The pool is closed.
    Closed,
}

/// A stretch of the story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody holds the leader key.
    Election,
    /// This member holds it, and has not proved itself.
    Promotion(String),
    /// A leader is admitted, and has acknowledged no write.
    FirstWrite,
}

/// How the story ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A write was acknowledged.
    FirstWrite,
    /// Nobody wrote.
    NoWrite,
    /// The next leader was lost too.
    Superseded,
    /// The pool was closed.
    Closed,
}

impl End {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            End::FirstWrite => "first_write",
            End::NoWrite => "no_write",
            End::Superseded => "superseded",
            End::Closed => "closed",
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Open the span of the whole.
    Begin { old: String, epoch: Option<Epoch>, reason: String },
    /// End the phase before, and open the span of this one.
    Enter(Phase),
    /// A leader is there again, after `gap` without one; after `total` in the whole story.
    Admitted { new: String, epoch: Epoch, kind: Kind, gap: Duration, total: Duration },
    /// Close all spans. `first_write` is how long after the loss it came.
    End { how: End, first_write: Option<Duration> },
}

#[derive(Debug)]
struct Story {
    /// The reign that was lost.
    old: String,
    timeline: Option<u32>,
    phase: Phase,
    began: Instant,
    /// When a leader was last lost.
    lost_at: Instant,
    /// Without a leader before that.
    before: Duration,
    admitted: Option<(String, Instant)>,
}

/// The failover that is going on, if there is one.
#[derive(Debug, Default)]
pub(super) struct Failover {
    /// The newest epoch.
    epoch: Option<Epoch>,
    /// Whom the key named last, and when: the news of it comes before that of the loss.
    candidate: Option<(String, Instant)>,
    story: Option<Story>,
}

impl Failover {
    /// What to do now that this has happened.
    pub(super) fn apply(&mut self, news: News, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        match news {
            News::Candidate(member) => {
                if let Some(story) = &mut self.story
                    && story.admitted.is_none()
                {
                    story.enter(Phase::Promotion(member.clone()), &mut steps);
                }
                self.candidate = Some((member, now));
            }
            News::Lost { leader, reason, moved_to } => {
                self.lost(leader, reason, now, &mut steps);
                let named = self.candidate.take().filter(|(_, at)| *at == now);
                if let Some(member) = moved_to.or(named.map(|(member, _)| member))
                    && let Some(story) = &mut self.story
                {
                    story.enter(Phase::Promotion(member), &mut steps);
                }
            }
            News::Admitted { leader, epoch } => {
                if let Some(story) = &mut self.story {
                    story.admit(leader, epoch, now, &mut steps);
                }
                self.epoch = Some(epoch);
            }
            News::FirstWrite { at } => {
                if self.story.as_ref().is_some_and(|story| story.admitted.is_some()) {
                    self.end(End::FirstWrite, Some(at), &mut steps);
                }
            }
            News::Tick => {
                let admitted = self.story.as_ref().and_then(|story| story.admitted.as_ref());
                if admitted.is_some_and(|(_, at)| now >= *at + FIRST_WRITE_LIMIT) {
                    self.end(End::NoWrite, None, &mut steps);
                }
            }
            News::Closed => self.end(End::Closed, None, &mut steps),
        }
        steps
    }

    fn lost(&mut self, leader: String, reason: String, now: Instant, steps: &mut Vec<Step>) {
        if let Some(story) = &mut self.story {
            let Some((admitted, at)) = story.admitted.take() else { return };
            // It was back for a moment, in its old reign: a server that goes down may still answer a
            // probe. That is the same story.
            if admitted == story.old && self.epoch.map(|epoch| epoch.timeline.0) == story.timeline {
                story.before += at.saturating_duration_since(story.lost_at);
                story.lost_at = now;
                story.enter(Phase::Election, steps);
                return;
            }
            self.end(End::Superseded, None, steps);
        }
        steps.push(Step::Begin { old: leader.clone(), epoch: self.epoch, reason });
        steps.push(Step::Enter(Phase::Election));
        self.story = Some(Story {
            old: leader,
            timeline: self.epoch.map(|epoch| epoch.timeline.0),
            phase: Phase::Election,
            began: now,
            lost_at: now,
            before: Duration::ZERO,
            admitted: None,
        });
    }

    fn end(&mut self, how: End, write_at: Option<Instant>, steps: &mut Vec<Step>) {
        if let Some(story) = self.story.take() {
            let first_write = write_at.map(|at| at.saturating_duration_since(story.began));
            steps.push(Step::End { how, first_write });
        }
    }
}

impl Story {
    fn enter(&mut self, phase: Phase, steps: &mut Vec<Step>) {
        if self.phase != phase {
            self.phase = phase.clone();
            steps.push(Step::Enter(phase));
        }
    }

    fn admit(&mut self, new: String, epoch: Epoch, now: Instant, steps: &mut Vec<Step>) {
        // Admitted already: its epoch has grown, without a gap.
        if self.admitted.is_some() {
            return;
        }
        self.admitted = Some((new.clone(), now));
        let same = new == self.old && Some(epoch.timeline.0) == self.timeline;
        let kind = if same { Kind::Interruption } else { Kind::Failover };
        let gap = now.saturating_duration_since(self.lost_at);
        steps.push(Step::Admitted { new, epoch, kind, gap, total: self.before + gap });
        self.enter(Phase::FirstWrite, steps);
    }
}

/// How long writes have had no leader, from the moment the pool was made.
#[derive(Debug)]
pub(super) struct Unavailable {
    total: Duration,
    since: Option<Instant>,
}

impl Unavailable {
    pub(super) fn new(now: Instant) -> Self {
        Self { total: Duration::ZERO, since: Some(now) }
    }

    /// There is no leader from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// There is one.
    pub(super) fn end(&mut self, now: Instant) {
        self.total = self.so_far(now);
        self.since = None;
    }

    pub(super) fn so_far(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::patroni::{SystemId, Timeline};

    fn epoch(timeline: u32) -> Epoch {
        Epoch { system_id: SystemId(7), timeline: Timeline(timeline), revision: 1 }
    }

    fn lost(leader: &str) -> News {
        News::Lost { leader: leader.into(), reason: "why".into(), moved_to: None }
    }

    fn moved(leader: &str, to: &str) -> News {
        News::Lost { leader: leader.into(), reason: "moved".into(), moved_to: Some(to.into()) }
    }

    fn named(member: &str) -> News {
        News::Candidate(member.into())
    }

    fn admitted(leader: &str, timeline: u32) -> News {
        News::Admitted { leader: leader.into(), epoch: epoch(timeline) }
    }

    fn shown(step: &Step) -> String {
        let ms = |duration: &Duration| duration.as_millis();
        match step {
            Step::Begin { old, epoch, reason } => {
                format!("begin {old}@{} {reason}", epoch.map_or(0, |epoch| epoch.timeline.0))
            }
            Step::Enter(Phase::Election) => "election".into(),
            Step::Enter(Phase::Promotion(member)) => format!("promotion of {member}"),
            Step::Enter(Phase::FirstWrite) => "first write".into(),
            Step::Admitted { new, epoch, kind, gap, total } => format!(
                "{} to {new}@{} gap {} of {}",
                kind.as_str(),
                epoch.timeline,
                ms(gap),
                ms(total)
            ),
            Step::End { how, first_write } => match first_write {
                Some(after) => format!("end {} after {}", how.as_str(), ms(after)),
                None => format!("end {}", how.as_str()),
            },
        }
    }

    /// Every story starts with `a` leading on timeline 1.
    fn told(news: impl IntoIterator<Item = (Duration, News)>, start: Instant) -> Vec<String> {
        let mut failover = Failover::default();
        let mut steps = failover.apply(admitted("a", 1), start);
        for (at, news) in news {
            steps.extend(failover.apply(news, start + at));
        }
        steps.iter().map(shown).collect()
    }

    /// `10 lost a, 50 named b, 110 admitted b 2, 130 write`, the times in milliseconds.
    fn read(line: &str, start: Instant) -> (Duration, News) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = Duration::from_millis(words[0].parse().expect("a time"));
        let news = match words[1..] {
            ["lost", leader] => lost(leader),
            ["moved", from, to] => moved(from, to),
            ["named", member] => named(member),
            ["admitted", leader, timeline] => {
                admitted(leader, timeline.parse().expect("a timeline"))
            }
            ["write"] => News::FirstWrite { at: start + at },
            ["tick"] => News::Tick,
            ["closed"] => News::Closed,
            _ => panic!("{line}"),
        };
        (at, news)
    }

    #[test]
    fn stories() {
        let cases = [
            ("nothing to tell before a loss", "1 write, 2 tick, 3 closed", ""),
            (
                "the key runs out, another takes it",
                "10 lost a, 50 named b, 90 tick, 110 admitted b 2, 130 write",
                "begin a@1 why; election; promotion of b; failover to b@2 gap 100 of 100; \
                 first write; end first_write after 120",
            ),
            (
                "the key moves: its news comes first",
                "10 named b, 10 moved a b, 110 admitted b 2, 130 write",
                "begin a@1 moved; election; promotion of b; failover to b@2 gap 100 of 100; \
                 first write; end first_write after 120",
            ),
            (
                "the key is made anew by its holder",
                "10 named a, 10 lost a, 15 admitted a 1, 130 write",
                "begin a@1 why; election; promotion of a; interruption to a@1 gap 5 of 5; \
                 first write; end first_write after 120",
            ),
            (
                "whom the key named long ago is no candidate",
                "5 named a, 10 lost a, 110 admitted b 2",
                "begin a@1 why; election; failover to b@2 gap 100 of 100; first write",
            ),
            (
                "a candidate fails, the next one leads",
                "10 lost a, 20 named b, 30 named b, 60 named c, 90 admitted c 3",
                "begin a@1 why; election; promotion of b; promotion of c; \
                 failover to c@3 gap 80 of 80; first write",
            ),
            (
                "the same member on a new timeline is a failover",
                "10 lost a, 20 admitted a 2",
                "begin a@1 why; election; failover to a@2 gap 10 of 10; first write",
            ),
            (
                "back for a moment only: one story, and the first gap counts too",
                "10 lost a, 15 admitted a 1, 20 lost a, 60 named b, 120 admitted b 2",
                "begin a@1 why; election; interruption to a@1 gap 5 of 5; first write; \
                 election; promotion of b; failover to b@2 gap 100 of 105; first write",
            ),
            (
                "the next leader is lost too",
                "10 lost a, 60 admitted b 2, 70 lost b, 90 admitted c 3, 130 write",
                "begin a@1 why; election; failover to b@2 gap 50 of 50; first write; \
                 end superseded; begin b@2 why; election; failover to c@3 gap 20 of 20; \
                 first write; end first_write after 60",
            ),
            (
                "an epoch that grows under an admitted leader changes nothing",
                "10 lost a, 60 admitted b 2, 70 admitted b 3, 130 write",
                "begin a@1 why; election; failover to b@2 gap 50 of 50; first write; \
                 end first_write after 120",
            ),
            (
                "nobody writes",
                "10 lost a, 60 admitted b 2, 10059 tick, 10060 tick, 10061 tick",
                "begin a@1 why; election; failover to b@2 gap 50 of 50; first write; end no_write",
            ),
            (
                "without a leader it goes on, however long",
                "10 lost a, 100000 tick, 100010 admitted b 2",
                "begin a@1 why; election; failover to b@2 gap 100000 of 100000; first write",
            ),
            (
                "a late write of the lost reign ends nothing; the pool's end does",
                "10 lost a, 20 write, 50 closed, 60 closed",
                "begin a@1 why; election; end closed",
            ),
        ];
        for (what, news, expected) in cases {
            let start = Instant::now();
            let steps = told(news.split(", ").map(|line| read(line, start)), start);
            assert_eq!(steps.join("; "), expected, "{what}");
        }
    }

    #[test]
    fn unavailability_counts_the_present_gap() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut unavailable = Unavailable::new(start);
        assert_eq!(unavailable.so_far(at(10)), ms(10), "from the start");
        unavailable.end(at(20));
        unavailable.end(at(30));
        assert_eq!(unavailable.so_far(at(100)), ms(20));
        unavailable.begin(at(100));
        unavailable.begin(at(110));
        assert_eq!(unavailable.so_far(at(150)), ms(70));
        unavailable.end(at(200));
        assert_eq!(unavailable.so_far(at(900)), ms(120));
    }

    fn news() -> impl Strategy<Value = News> {
        let members = proptest::sample::select(&["a", "b", "c"][..]);
        prop_oneof![
            members.clone().prop_map(named),
            members.clone().prop_map(lost),
            (members.clone(), members.clone()).prop_map(|(from, to)| moved(from, to)),
            (members, 1_u32..4).prop_map(|(member, timeline)| admitted(member, timeline)),
            Just(News::FirstWrite { at: Instant::now() }),
            Just(News::Tick),
        ]
    }

    proptest! {
        /// Whatever happens: spans are opened within the whole, which is opened once and closed once.
        #[test]
        fn every_story_ends(news in proptest::collection::vec((0_u64..6000, news()), 0..60)) {
            let mut at = Duration::ZERO;
            let timed = news.into_iter().map(|(pause, news)| {
                at += Duration::from_millis(pause);
                (at, news)
            });
            let mut news: Vec<(Duration, News)> = timed.collect();
            news.push((at, News::Closed));
            let mut open = false;
            for step in told(news, Instant::now()) {
                if step.starts_with("begin") {
                    prop_assert!(!open, "one at a time");
                    open = true;
                } else {
                    prop_assert!(open, "{} outside of a story", step);
                    open = !step.starts_with("end");
                }
            }
            prop_assert!(!open, "it must end with the pool");
        }
    }
}
