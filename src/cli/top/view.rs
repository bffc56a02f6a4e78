//! The live view: what is on the screen, and what keys do to it.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table, TableState};

use super::sample::{Flow, Health, Sample};
use super::words::{bytes, count, seconds};
use crate::cli::output;

/// A list that can be scrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pane {
    Groups,
    Topics,
    Partitions,
}

const PANES: [Pane; 3] = [Pane::Groups, Pane::Topics, Pane::Partitions];

/// What to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Draw again.
    Draw,
    /// End.
    Quit,
    /// Nothing.
    Ignore,
}

/// What the screen shows.
#[derive(Debug)]
pub(super) struct View {
    broker: String,
    sample: Option<Sample>,
    /// Why the last refresh failed.
    failure: Option<String>,
    focus: usize,
    /// The first line of each pane.
    scrolled: [usize; PANES.len()],
}

impl View {
    /// An empty view of the cluster that `broker` is part of.
    pub(super) fn new(broker: &str) -> Self {
        View { broker: broker.to_owned(), sample: None, failure: None, focus: 0, scrolled: [0; PANES.len()] }
    }

    /// Shows a sample.
    pub(super) fn show(&mut self, sample: Sample) {
        self.failure = None;
        self.sample = Some(sample);
        for pane in 0..PANES.len() {
            self.scrolled[pane] = self.scrolled[pane].min(self.lines(pane).saturating_sub(1));
        }
    }

    /// Says why there is no newer sample.
    pub(super) fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
    }

    fn lines(&self, pane: usize) -> usize {
        let lines = self.sample.as_ref().map(|sample| match PANES[pane] {
            Pane::Groups => sample.groups.len(),
            Pane::Topics => sample.topics.len(),
            Pane::Partitions => sample.partitions.len(),
        });
        lines.unwrap_or(0)
    }

    /// Does what a key stands for: q, Esc or Ctrl-C end; Tab or the right arrow, and Shift-Tab or the left arrow, choose a
    /// list; the other arrows, PgUp, PgDn, Home and End scroll it.
    pub(super) fn key(&mut self, key: KeyEvent) -> After {
        let last = self.lines(self.focus).saturating_sub(1);
        let at = &mut self.scrolled[self.focus];
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return After::Quit,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return After::Quit,
            KeyCode::Tab | KeyCode::Right => self.focus = (self.focus + 1) % PANES.len(),
            KeyCode::BackTab | KeyCode::Left => self.focus = (self.focus + PANES.len() - 1) % PANES.len(),
            KeyCode::Up => *at = at.saturating_sub(1),
            KeyCode::Down => *at = (*at + 1).min(last),
            KeyCode::PageUp => *at = at.saturating_sub(10),
            KeyCode::PageDown => *at = (*at + 10).min(last),
            KeyCode::Home => *at = 0,
            KeyCode::End => *at = last,
            _ => return After::Ignore,
        }
        After::Draw
    }

    /// Draws everything.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let missing = self.sample.as_ref().map_or(0, |sample| sample.missing.len()).min(3) as u16;
        let [head, summary, lists, trouble, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(6),
            Constraint::Min(3),
            Constraint::Length(missing + u16::from(self.failure.is_some())),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(), head);
        match &self.sample {
            Some(sample) => {
                frame.render_widget(Paragraph::new(summary_lines(sample)), summary);
                self.draw_lists(frame, lists, sample);
            }
            None => frame
                .render_widget(Paragraph::new("the first rates need two readings: wait a moment"), summary),
        }
        frame.render_widget(Paragraph::new(self.trouble()), trouble);
        let help = "q quit   Tab/\u{2190}\u{2192} list   \u{2191}\u{2193} PgUp PgDn Home End scroll";
        frame.render_widget(Line::from(help).dim(), keys);
    }

    fn head(&self) -> Line<'static> {
        let mut spans = vec![Span::from("streambus top").bold(), Span::from(format!("  {}", self.broker))];
        if let Some(sample) = &self.sample {
            let interval = sample.interval.as_secs_f64();
            spans.push(Span::from(format!("  {}  over {interval:.1} s", output::time(sample.at))).dim());
        }
        Line::from(spans)
    }

    fn trouble(&self) -> Vec<Line<'static>> {
        let failure = self.failure.iter().map(|reason| format!("not refreshed: {reason}"));
        let missing = self.sample.iter().flat_map(|sample| &sample.missing).take(3);
        let missing = missing.map(|(id, reason)| format!("broker {id} is missing: {reason}"));
        failure.chain(missing).map(|text| Line::from(text).fg(Color::Yellow)).collect()
    }

    fn draw_lists(&self, frame: &mut Frame<'_>, area: Rect, sample: &Sample) {
        let areas: [Rect; PANES.len()] = match area.width {
            // Side by side where there is room, else only the chosen one.
            90.. => Layout::horizontal([
                Constraint::Ratio(3, 10),
                Constraint::Ratio(4, 10),
                Constraint::Ratio(3, 10),
            ])
            .areas(area),
            _ => std::array::from_fn(|pane| if pane == self.focus { area } else { Rect::ZERO }),
        };
        for (number, (pane, area)) in PANES.into_iter().zip(areas).enumerate() {
            if area.is_empty() {
                continue;
            }
            let (title, heading, widths, rows) = match pane {
                Pane::Groups => (
                    "groups by lag",
                    vec!["GROUP", "MESSAGES", "TIME"],
                    vec![Constraint::Fill(2), Constraint::Fill(1), Constraint::Fill(1)],
                    sample
                        .groups
                        .iter()
                        .map(|group| {
                            vec![group.group.clone(), count(group.messages), seconds(Some(group.seconds))]
                        })
                        .collect::<Vec<_>>(),
                ),
                Pane::Topics => (
                    "topics",
                    vec!["TOPIC", "IN/s", "BYTES/s", "OUT/s", "BYTES/s"],
                    vec![
                        Constraint::Fill(2),
                        Constraint::Fill(1),
                        Constraint::Fill(1),
                        Constraint::Fill(1),
                        Constraint::Fill(1),
                    ],
                    sample
                        .topics
                        .iter()
                        .map(|topic| {
                            vec![
                                topic.topic.clone(),
                                count(topic.produced.records),
                                bytes(topic.produced.bytes),
                                count(topic.consumed.records),
                                bytes(topic.consumed.bytes),
                            ]
                        })
                        .collect(),
                ),
                Pane::Partitions => (
                    "hot partitions",
                    vec!["PARTITION", "IN/s", "LEADER"],
                    vec![Constraint::Fill(2), Constraint::Fill(1), Constraint::Length(6)],
                    sample
                        .partitions
                        .iter()
                        .map(|partition| {
                            vec![
                                format!("{}/{}", partition.topic, partition.partition),
                                count(partition.records),
                                partition.leader.to_string(),
                            ]
                        })
                        .collect(),
                ),
            };
            let focused = number == self.focus;
            let border = if focused { Style::new().fg(Color::Cyan) } else { Style::new().dim() };
            let block = Block::bordered().title(format!(" {title} ({}) ", rows.len())).border_style(border);
            let table = Table::new(rows.into_iter().map(Row::new), widths)
                .header(Row::new(heading).style(Style::new().add_modifier(Modifier::BOLD)))
                .block(block);
            let mut state = TableState::new().with_offset(self.scrolled[number]);
            frame.render_stateful_widget(table, area, &mut state);
        }
    }
}

fn summary_lines(sample: &Sample) -> Vec<Line<'static>> {
    let flow = |name: &str, flow: Flow, p99: Option<f64>| {
        Line::from(format!(
            "{name:<9} {:>8} records/s  {:>10}/s   p99 {}",
            count(flow.records),
            bytes(flow.bytes),
            seconds(p99)
        ))
    };
    let phases: Vec<_> =
        sample.phases.iter().map(|(phase, p99)| format!("{phase} {}", seconds(*p99))).collect();
    vec![
        health_line(&sample.health),
        flow("produced", sample.produced, sample.produce_p99),
        flow("consumed", sample.consumed, sample.consume_p99),
        Line::from(format!("p99 of    {}", phases.join("   "))),
    ]
}

fn health_line(health: &Health) -> Line<'static> {
    let bad = |count: usize, name: &str| {
        let text = Span::from(format!("   {count} {name}"));
        if count == 0 { text } else { text.fg(Color::Red).bold() }
    };
    let reached = Span::from(format!("cluster   {}/{} brokers reached", health.reached, health.brokers));
    Line::from(vec![
        if health.reached == health.brokers { reached } else { reached.fg(Color::Red).bold() },
        Span::from(format!(
            "   controller {}   {} partitions",
            health.controller.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            health.partitions
        )),
        bad(health.leaderless, "leaderless"),
        bad(health.under_replicated, "under-replicated"),
        Span::from(format!("   {} moving", health.moving)),
    ])
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::top::sample::GroupLag;
    use crate::cli::top::sample::tests::sample;

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("it is drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    fn press(view: &mut View, code: KeyCode) -> After {
        view.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn a_wide_screen_shows_everything() {
        let mut view = View::new("localhost:9092");
        assert!(drawn(&view, 120, 20).contains("the first rates need two readings"));
        view.show(sample());
        let screen = drawn(&view, 120, 20);
        for expected in [
            "streambus top  localhost:9092",
            "cluster   2/3 brokers reached   controller 1   12 partitions   1 leaderless   1 under-replicated",
            "produced        24 records/s     2.0 KiB/s   p99 -",
            "append 9.9 ms",
            "groups by lag (1)",
            "billing",
            "orders/4",
            "broker 3 is missing: it is away",
            "q quit   Tab",
        ] {
            assert!(screen.contains(expected), "{expected:?} is not in\n{screen}");
        }
    }

    #[test]
    fn a_narrow_screen_shows_the_chosen_list() {
        let mut view = View::new("b:1");
        view.show(sample());
        assert!(drawn(&view, 70, 16).contains("groups by lag"));
        assert_eq!(press(&mut view, KeyCode::Tab), After::Draw);
        let screen = drawn(&view, 70, 16);
        assert!(screen.contains("topics (2)") && !screen.contains("groups by lag"), "{screen}");
        press(&mut view, KeyCode::Left);
        press(&mut view, KeyCode::Left);
        assert!(drawn(&view, 70, 16).contains("hot partitions (1)"));
        // However small it is, it does not panic.
        drawn(&view, 3, 2);
    }

    #[test]
    fn arrows_scroll_within_the_list() {
        let mut view = View::new("b:1");
        let groups =
            (0..30).map(|number| GroupLag { group: format!("group-{number:02}"), ..Default::default() });
        view.show(Sample { groups: groups.collect(), ..sample() });
        assert!(drawn(&view, 120, 20).contains("group-00"));
        press(&mut view, KeyCode::Up);
        (0..3).for_each(|_| assert_eq!(press(&mut view, KeyCode::Down), After::Draw));
        let screen = drawn(&view, 120, 20);
        assert!(!screen.contains("group-02") && screen.contains("group-03"), "{screen}");
        press(&mut view, KeyCode::End);
        press(&mut view, KeyCode::PageDown);
        assert!(drawn(&view, 120, 20).contains("group-29"));
        // Fewer lines than before: the place moves up with them.
        view.show(sample());
        assert!(drawn(&view, 120, 20).contains("billing"));
    }

    #[test]
    fn a_failed_refresh_keeps_the_last_sample_and_says_so() {
        let mut view = View::new("b:1");
        view.show(sample());
        view.fail("no broker answers".to_owned());
        let screen = drawn(&view, 120, 20);
        assert!(
            screen.contains("not refreshed: no broker answers") && screen.contains("billing"),
            "{screen}"
        );
        view.show(sample());
        assert!(!drawn(&view, 120, 20).contains("not refreshed"));
    }

    #[test]
    fn keys_end_it() {
        let mut view = View::new("b:1");
        assert_eq!(press(&mut view, KeyCode::Char('q')), After::Quit);
        assert_eq!(press(&mut view, KeyCode::Esc), After::Quit);
        assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), After::Quit);
        assert_eq!(press(&mut view, KeyCode::Char('c')), After::Ignore);
    }
}
