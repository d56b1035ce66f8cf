//! From a script's text to a [`Script`].
//!
//! ```text
//!  --option=value …   `command`   { TIME  < packet | > packet | call(…) = result | `command` | %{ code }% } …
//! ```

use std::collections::HashMap;

use crate::lexer::{Lexer, Token};
use crate::packets;
use crate::script::{Action, Call, Event, Expr, Script, Time, Us};

/// Reads a script.
///
/// # Errors
/// The line and what is wrong there.
pub fn script(text: &str, defines: &HashMap<String, String>) -> Result<Script, String> {
    let mut lexer = Lexer::new(text, defines);
    let mut script = Script::default();
    loop {
        let line = lexer.line();
        match item(&mut lexer, &mut script, line) {
            Ok(true) => {}
            Ok(false) => return Ok(script),
            Err(error) => return Err(format!("line {line}: {error}")),
        }
    }
}

/// One option, command or event; false at the end.
fn item(lexer: &mut Lexer<'_>, script: &mut Script, line: usize) -> Result<bool, String> {
    match lexer.peek()? {
        Token::End => return Ok(false),
        Token::Option(name) => {
            lexer.take()?;
            let value = if lexer.take_sign('=') { lexer.take_raw().to_owned() } else { String::new() };
            script.options.push((name, value));
        }
        Token::Command(command) => {
            lexer.take()?;
            // Behind the last event it tidies up; what it would tidy is gone with our namespace.
            if script.events.is_empty() {
                script.init.push(command);
            }
        }
        _ => {
            let time = time(lexer)?;
            let action = action(lexer)?;
            script.events.push(Event { line, time, action });
        }
    }
    Ok(true)
}

/// A point in time or a range.
fn time(lexer: &mut Lexer<'_>) -> Result<Time, String> {
    if lexer.take_sign('*') {
        return Ok(Time::Any);
    }
    let relative = lexer.take_sign('+');
    let from = micros(lexer)?;
    let mut to = from;
    if lexer.take_sign('~') {
        if relative && !lexer.take_sign('+') {
            return Err("a relative range ends relative, too".into());
        }
        to = micros(lexer)?;
    }
    Ok(if relative { Time::After(from, to) } else { Time::At(from, to) })
}

fn micros(lexer: &mut Lexer<'_>) -> Result<Us, String> {
    match lexer.take()? {
        Token::Int(seconds) => Ok(seconds * 1_000_000),
        Token::Micros(micros) => Ok(micros),
        other => Err(format!("{other:?} is no time")),
    }
}

fn action(lexer: &mut Lexer<'_>) -> Result<Action, String> {
    if lexer.take_sign('<') {
        return packets::packet(lexer, true).map(Action::Inbound);
    }
    if lexer.take_sign('>') {
        return packets::packet(lexer, false).map(Action::Outbound);
    }
    match lexer.peek()? {
        Token::Command(command) => {
            lexer.take()?;
            Ok(Action::Command(command))
        }
        Token::Code(code) => {
            lexer.take()?;
            Ok(Action::Code(code))
        }
        _ => call(lexer).map(Action::Call),
    }
}

fn call(lexer: &mut Lexer<'_>) -> Result<Call, String> {
    let until = match lexer.peek()? {
        Token::Ellipsis => {
            lexer.take()?;
            Some(micros(lexer)?)
        }
        _ => None,
    };
    let Token::Word(name) = lexer.take()? else {
        return Err("a call, a packet or a command is missing".into());
    };
    let args = arguments(lexer)?;
    expect(lexer, '=')?;
    let result = expression(lexer)?;
    let errno = match lexer.peek()? {
        Token::Word(word) => {
            lexer.take()?;
            Some(word)
        }
        _ => None,
    };
    // What the error means, for people.
    if lexer.take_sign('(') {
        lexer.take_until(')')?;
    }
    Ok(Call { name, args, until, result, errno })
}

fn arguments(lexer: &mut Lexer<'_>) -> Result<Vec<Expr>, String> {
    expect(lexer, '(')?;
    list(lexer, ')')
}

/// Expressions up to `end`, which is taken.
fn list(lexer: &mut Lexer<'_>, end: char) -> Result<Vec<Expr>, String> {
    let mut items = Vec::new();
    loop {
        if lexer.take_sign(end) {
            return Ok(items);
        }
        items.push(expression(lexer)?);
        if !lexer.take_sign(',') {
            expect(lexer, end)?;
            return Ok(items);
        }
    }
}

fn expect(lexer: &mut Lexer<'_>, sign: char) -> Result<(), String> {
    if lexer.take_sign(sign) {
        Ok(())
    } else {
        Err(format!("{sign:?} is missing before {:?}", lexer.peek()?))
    }
}

fn expression(lexer: &mut Lexer<'_>) -> Result<Expr, String> {
    let mut left = term(lexer)?;
    while lexer.take_sign('|') {
        left = Expr::Or(Box::new(left), Box::new(term(lexer)?));
    }
    Ok(left)
}

fn term(lexer: &mut Lexer<'_>) -> Result<Expr, String> {
    if lexer.take_sign('[') {
        return list(lexer, ']').map(Expr::List);
    }
    if lexer.take_sign('{') {
        return list(lexer, '}').map(Expr::Braces);
    }
    match lexer.take()? {
        Token::Ellipsis => Ok(Expr::Ellipsis),
        Token::Int(value) => Ok(Expr::Int(value)),
        Token::Text(mut text) => {
            // Strings that follow each other are one.
            while let Token::Text(more) = lexer.peek()? {
                lexer.take()?;
                text.extend(more);
            }
            // "abc"...: the beginning of more.
            if lexer.peek()? == Token::Ellipsis {
                lexer.take()?;
            }
            Ok(Expr::Text(text))
        }
        Token::Word(word) => {
            let args = match lexer.take_sign('(') {
                true => Some(list(lexer, ')')?),
                false => None,
            };
            if lexer.take_sign('=') {
                return Ok(Expr::Field(word, Box::new(expression(lexer)?)));
            }
            Ok(match args {
                Some(args) => Expr::Apply(word, args),
                None => Expr::Word(word),
            })
        }
        other => Err(format!("{other:?} is no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Script {
        script(text, &HashMap::new()).expect("a script")
    }

    #[test]
    fn a_small_script() {
        let script = parsed(
            "--tolerance_usecs=10000\n`./defaults.sh\nx`\n 0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n\
             +0...0.300 write(4, ..., 61000) = 61000 // blocks\n +.1~+.2 > . 1:1(0) ack 1\n* > F. 1:1(0) ack 1\n\
             +0 connect(3, ..., ...) = -1 EINPROGRESS (Operation now in progress)\n+0 %{ assert a == 1 }%\n",
        );
        assert_eq!(script.options, [("tolerance_usecs".to_owned(), "10000".to_owned())]);
        assert_eq!(script.init.len(), 1);
        let times: Vec<Time> = script.events.iter().map(|event| event.time).collect();
        assert_eq!(times[..3], [Time::At(0, 0), Time::After(0, 0), Time::After(100_000, 200_000)]);
        assert_eq!((script.events[0].line, script.events[4].line), (4, 8));
        let Action::Call(write) = &script.events[1].action else { panic!() };
        assert_eq!((write.until, &write.result), (Some(300_000), &Expr::Int(61000)));
        let Action::Call(connect) = &script.events[4].action else { panic!() };
        assert_eq!(connect.errno.as_deref(), Some("EINPROGRESS"));
    }

    #[test]
    fn structures() {
        let script = parsed(
            "0 sendmsg(4, {msg_name(...)=..., msg_iov(1)=[{..., 40}], msg_flags=0}, MSG_MORE|MSG_DONTWAIT) = 40\n\
             +0 poll([{fd=4, events=POLLIN, revents=POLLIN}], 1, 0) = 1\n",
        );
        let Action::Call(call) = &script.events[0].action else { panic!() };
        let vectors = call.args[1].field("msg_iov").expect("a list");
        assert_eq!(*vectors, Expr::List(vec![Expr::Braces(vec![Expr::Ellipsis, Expr::Int(40)])]));
    }

    #[test]
    fn mistakes_name_their_line() {
        let error = script("0 socket(...) = 3\n+0 nonsense\n", &HashMap::new()).expect_err("a mistake");
        assert!(error.starts_with("line 2:"), "{error}");
    }
}
