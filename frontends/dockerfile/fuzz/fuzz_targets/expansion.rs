//! Whatever is expanded ends, with a result of bounded length.

#![no_main]

use kiln_dockerfile::shell::{Lexer, Quotes, Unset, Variables};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (value, text) = text.split_once('\n').unwrap_or(("x", text));
    let variables: Variables = [("a", value), ("b", ""), ("PATH", "/usr/bin:/bin")].into_iter().collect();
    let shown = Lexer { quotes: Quotes::Keep, unset: Unset::Keep, ..Lexer::new('\\') };
    for lexer in [Lexer::new('\\'), Lexer::new('`'), Lexer::of_heredocs(), shown] {
        if let Ok(expansion) = lexer.expand(text, &variables) {
            assert!(expansion.text.len() <= 4 << 20);
            assert!(expansion.words.iter().all(|word| !word.is_empty()));
        }
    }
});
