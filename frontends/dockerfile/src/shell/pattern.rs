//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?`, with a backslash to escape them. There are no classes.
//!
//! Matching keeps a set of states, so no pattern takes more than (length of the pattern) x (length of the value) steps.

/// One element of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Char(char),
    /// `?`: any one character.
    One,
    /// `*`: any number of characters.
    Any,
}

impl Element {
    /// Go's `.` does not match a line break, and the language is defined by Go's regular expressions.
    fn accepts(self, c: char) -> bool {
        match self {
            Self::Char(expected) => c == expected,
            Self::One | Self::Any => c != '\n',
        }
    }
}

/// Which end of a value is matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    End,
}

/// Which of several possible matches is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Shortest,
    Longest,
}

#[derive(Clone, Debug)]
pub(super) struct Pattern {
    elements: Vec<Element>,
}

impl Pattern {
    /// Reads a pattern; the error completes the sentence "the pattern ...".
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut elements = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            elements.push(match c {
                '*' => Element::Any,
                '?' => Element::One,
                '\\' => match chars.next() {
                    // } and / had to be escaped to get here.
                    Some(c @ ('*' | '?' | '\\' | '}' | '/')) => Element::Char(c),
                    Some(c) => return Err(format!("escapes {c}, which is not special (special are * ? \\ / and }})")),
                    None => return Err("ends in an escape".to_owned()),
                },
                c => Element::Char(c),
            });
        }
        Ok(Self { elements })
    }

    /// Returns the length in bytes of the match at one end of `value`.
    pub(super) fn find_at(&self, value: &str, anchor: Anchor, length: Length) -> Option<usize> {
        match anchor {
            Anchor::Start => matched(&self.elements, value.chars(), length),
            Anchor::End => {
                let reversed: Vec<Element> = self.elements.iter().rev().copied().collect();
                matched(&reversed, value.chars().rev(), length)
            }
        }
    }

    /// Replaces the first match, or all of them, each as long as possible; `None` when the result exceeds `limit` bytes.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool, limit: usize) -> Option<String> {
        let mut result = String::new();
        let mut at = 0;
        let mut replaced_up_to = None;
        while at <= value.len() {
            let rest = &value[at..];
            let found = matched(&self.elements, rest.chars(), Length::Longest)
                // Go: no empty match right after another match.
                .filter(|length| *length > 0 || replaced_up_to != Some(at));
            if let Some(length) = found {
                result.push_str(replacement);
                replaced_up_to = Some(at + length);
                if !all {
                    result.push_str(&rest[length..]);
                    break;
                }
            }
            let length = found.unwrap_or(0);
            if length > 0 {
                at += length;
            } else if let Some(c) = rest.chars().next() {
                result.push(c);
                at += c.len_utf8();
            } else {
                break;
            }
            if result.len() > limit {
                return None;
            }
        }
        (result.len() <= limit).then_some(result)
    }
}

/// Returns how many bytes from the start of `chars` the elements match.
fn matched(elements: &[Element], chars: impl Iterator<Item = char>, length: Length) -> Option<usize> {
    let mut states = vec![false; elements.len() + 1];
    enter(elements, &mut states, 0);
    let mut best = None;
    let mut consumed = 0;
    let mut chars = chars;
    loop {
        if states[elements.len()] {
            best = Some(consumed);
            if length == Length::Shortest {
                break;
            }
        }
        let Some(c) = chars.next() else { break };
        let mut next = vec![false; elements.len() + 1];
        for (state, element) in elements.iter().enumerate().filter(|(state, _)| states[*state]) {
            if element.accepts(c) {
                enter(elements, &mut next, if *element == Element::Any { state } else { state + 1 });
            }
        }
        if !next.contains(&true) {
            break;
        }
        states = next;
        consumed += c.len_utf8();
    }
    best
}

/// Marks a state and those that are reached from it by matching `*` with nothing.
fn enter(elements: &[Element], states: &mut [bool], mut state: usize) {
    states[state] = true;
    while elements.get(state) == Some(&Element::Any) {
        state += 1;
        states[state] = true;
    }
}
