//! The words of a script. The language has no reserved words and tells numbers, addresses and flags apart by
//! their place only, so the parser pulls one token at a time and takes some text as it stands.

use std::collections::HashMap;

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(String),
    /// The value, and whether a dot stood in it; times count in microseconds.
    Int(i64),
    Micros(i64),
    Text(Vec<u8>),
    /// `` `…` ``
    Command(String),
    /// `%{ … }%`
    Code(String),
    /// `--name`
    Option(String),
    Ellipsis,
    Sign(char),
    End,
}

/// A place in a script's text.
#[derive(Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    defines: &'a HashMap<String, String>,
}

impl<'a> Lexer<'a> {
    /// From the beginning of `text`; words that `defines` has are replaced by their values.
    pub fn new(text: &'a str, defines: &'a HashMap<String, String>) -> Self {
        Self { text, at: 0, defines }
    }

    /// Line of the next token, from 1.
    pub fn line(&mut self) -> usize {
        self.skip_space();
        1 + self.text[..self.at].matches('\n').count()
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("//") || trimmed.starts_with('#') {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                self.at += trimmed.find("*/").map_or(trimmed.len(), |end| end + 2);
            } else {
                return;
            }
        }
    }

    /// The next token without taking it.
    pub fn peek(&self) -> Result<Token, String> {
        self.clone().take()
    }

    /// Takes the next token if it is `sign`.
    pub fn take_sign(&mut self, sign: char) -> bool {
        self.skip_space();
        // `...` is a token of its own.
        if self.rest().starts_with(sign) && !self.rest().starts_with("...") {
            self.at += sign.len_utf8();
            return true;
        }
        false
    }

    /// Takes the next token if it is `word`.
    pub fn take_word(&mut self, word: &str) -> bool {
        let mut ahead = self.clone();
        let found = ahead.take() == Ok(Token::Word(word.to_owned()));
        if found {
            *self = ahead;
        }
        found
    }

    /// Takes text up to the next white space.
    pub fn take_raw(&mut self) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// Takes hexadecimal digits, which need not be told from a number.
    pub fn take_hex(&mut self) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let len = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let digits = &rest[..len];
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return "";
        }
        self.at += len;
        digits
    }

    /// Takes text up to `end`, which is taken, too.
    pub fn take_until(&mut self, end: char) -> Result<&'a str, String> {
        let rest = self.rest();
        let len = rest.find(end).ok_or_else(|| format!("no {end:?} follows"))?;
        self.at += len + end.len_utf8();
        Ok(&rest[..len])
    }

    /// Takes a token.
    pub fn take(&mut self) -> Result<Token, String> {
        self.skip_space();
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if rest.starts_with("...") {
            self.at += 3;
            return Ok(Token::Ellipsis);
        }
        if let Some(name) = rest.strip_prefix("--") {
            let len = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            self.at += 2 + len;
            return Ok(Token::Option(name[..len].to_owned()));
        }
        if let Some(code) = rest.strip_prefix("%{") {
            let len = code.find("}%").ok_or("%{ without }%")?;
            self.at += len + 4;
            return Ok(Token::Code(code[..len].trim_matches([' ', '\t']).to_owned()));
        }
        match first {
            '"' | '`' => self.quoted(first),
            _ if first.is_ascii_digit() || is_number(rest) => self.number(),
            _ if first.is_alphabetic() || first == '_' => Ok(self.word()),
            _ => {
                self.at += first.len_utf8();
                Ok(Token::Sign(first))
            }
        }
    }

    fn quoted(&mut self, mark: char) -> Result<Token, String> {
        let rest = &self.rest()[1..];
        let mut escaped = false;
        let end = rest
            .char_indices()
            .find(|&(_, c)| {
                let ends = c == mark && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })
            .map(|(at, _)| at)
            .ok_or_else(|| format!("a {mark} has no end"))?;
        self.at += end + 2;
        let inside = &rest[..end];
        Ok(if mark == '`' { Token::Command(inside.to_owned()) } else { Token::Text(unescape(inside)) })
    }

    fn number(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x") {
            let len = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            self.at += 2 + len;
            let value = u64::from_str_radix(&hex[..len], 16).map_err(|error| error.to_string())?;
            return Ok(Token::Int(value.cast_signed()));
        }
        let word_len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = &rest[..word_len];
        if word.chars().next().is_some_and(|c| c.is_ascii_digit())
            && !word.bytes().all(|b| b.is_ascii_digit())
        {
            // A cookie or the like, in hexadecimal.
            self.at += word_len;
            return Ok(Token::Word(word.to_owned()));
        }
        let sign = usize::from(rest.starts_with('-'));
        let digits = |from: &str| from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let whole = sign + digits(&rest[sign..]);
        let fraction = rest[whole..].strip_prefix('.').map_or(0, digits);
        if fraction == 0 {
            self.at += whole;
            return rest[..whole]
                .parse()
                .map(Token::Int)
                .map_err(|error| format!("{}: {error}", &rest[..whole]));
        }
        let len = whole + 1 + fraction;
        self.at += len;
        let seconds: f64 = rest[..len].parse().map_err(|_| format!("{}: not a number", &rest[..len]))?;
        #[allow(clippy::cast_possible_truncation, reason = "times of a script are seconds")]
        Ok(Token::Micros((seconds * 1e6).round() as i64))
    }

    fn word(&mut self) -> Token {
        let rest = self.rest();
        let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += len;
        let word = &rest[..len];
        let Some(value) = self.defines.get(word) else { return Token::Word(word.to_owned()) };
        if let Some(text) = value.strip_prefix('"') {
            return Token::Text(text.trim_end_matches('"').as_bytes().to_vec());
        }
        if let Some(command) = value.strip_prefix('`') {
            return Token::Command(command.trim_end_matches('`').to_owned());
        }
        match value.strip_prefix("0x").map_or_else(|| value.parse(), |hex| i64::from_str_radix(hex, 16)) {
            Ok(number) => Token::Int(number),
            Err(_) => Token::Word(value.clone()),
        }
    }
}

/// Whether a number begins here: `.5`, `-1`.
fn is_number(rest: &str) -> bool {
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    rest.starts_with(|c: char| c.is_ascii_digit())
}

/// The bytes of a string in quotes.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let byte = match c {
            '\\' => match chars.next() {
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('r') => b'\r',
                Some('0') => 0,
                Some('x') => {
                    let hex: String = chars.by_ref().take(2).collect();
                    u8::from_str_radix(&hex, 16).unwrap_or(0)
                }
                Some(other) => other as u8,
                None => break,
            },
            c => {
                let mut room = [0; 4];
                bytes.extend_from_slice(c.encode_utf8(&mut room).as_bytes());
                continue;
            }
        };
        bytes.push(byte);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        let defines = HashMap::from([("COOKIE".to_owned(), "3021b9".to_owned())]);
        let mut lexer = Lexer::new(text, &defines);
        std::iter::from_fn(|| Some(lexer.take().expect("a token")).filter(|token| *token != Token::End))
            .collect()
    }

    #[test]
    fn times_numbers_and_words() {
        use Token::{Ellipsis, Int, Micros, Sign, Word};
        assert_eq!(tokens("0.1 +.05 1"), [Micros(100_000), Sign('+'), Micros(50_000), Int(1)]);
        assert_eq!(tokens("+0...0.3"), [Sign('+'), Int(0), Ellipsis, Micros(300_000)]);
        assert_eq!(tokens("0x1f -1 COOKIE"), [Int(31), Int(-1), Word("3021b9".into())]);
        assert_eq!(tokens("12ab // no\n/* no */ a_1"), [Word("12ab".into()), Word("a_1".into())]);
    }

    #[test]
    fn quotes() {
        assert_eq!(tokens(r#""a\x41\n""#), [Token::Text(b"aA\n".to_vec())]);
        assert_eq!(
            tokens("`x\ny` %{ assert 1 }%"),
            [Token::Command("x\ny".into()), Token::Code("assert 1 ".trim().into())]
        );
    }
}
