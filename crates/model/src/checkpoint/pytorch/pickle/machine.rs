//! The stack machine that a pickle is written for, with the instructions of protocol 2 that tensors need.

use super::super::{Fault, REMEDY, damaged, refused};
use super::MAX_VALUES;
use super::value::{Global, Value};
use std::collections::HashMap;

/// The instructions, by the letters that the pickle format gives them.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
}

/// The one protocol that `torch.save` writes unless told otherwise.
const PROTOCOL: u8 = 2;

/// Keys and values of a dict, in order.
type Entries<'a> = Vec<(Value<'a>, Value<'a>)>;

/// A pickle being read.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which collections begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    dicts: Vec<Entries<'a>>,
    /// Entries of all dicts together.
    entries: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let (stack, marks, memo, dicts) = (Vec::new(), Vec::new(), HashMap::new(), Vec::new());
        Self { bytes, at: 0, stack, marks, memo, dicts, entries: 0 }
    }

    /// Returns the entries of the dict that the pickle makes.
    pub(super) fn run(mut self) -> Result<Entries<'a>, Fault> {
        if self.take(2)? != [op::PROTO, PROTOCOL] {
            return refused(format!("its pickle is not of protocol {PROTOCOL}; {REMEDY}"));
        }
        loop {
            let op = self.byte()?;
            if op == op::STOP {
                break;
            }
            self.step(op)?;
            let sizes = [self.stack.len(), self.marks.len(), self.memo.len(), self.dicts.len(), self.entries];
            if sizes.iter().any(|size| *size > MAX_VALUES) {
                return damaged("its pickle holds more values than any model needs");
            }
        }
        match self.pop()? {
            Value::Dict(number) => Ok(self.dicts.swap_remove(number)),
            other => refused(format!("holds {}, not a dict of tensors; {REMEDY}", other.says())),
        }
    }

    fn step(&mut self, op: u8) -> Result<(), Fault> {
        let value = match op {
            op::MARK => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            op::BINPUT => return self.memorise(Self::index),
            op::LONG_BINPUT => return self.memorise(Self::long_index),
            op::SETITEM => return self.set_items(1),
            op::SETITEMS => {
                let items = self.above_mark()?;
                return self.set_items_of(items);
            }
            op::BUILD => return self.build(),
            op::NONE => Value::None,
            op::NEWTRUE | op::NEWFALSE => Value::Bool,
            op::BININT => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            op::BININT1 => Value::Integer(i64::from(self.byte()?)),
            op::BININT2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            op::LONG1 => self.long()?,
            op::BINUNICODE => self.text()?,
            op::GLOBAL => self.global()?,
            op::BINGET => self.recall(Self::index)?,
            op::LONG_BINGET => self.recall(Self::long_index)?,
            op::EMPTY_TUPLE => Value::tuple(Vec::new())?,
            op::TUPLE => Value::tuple(self.above_mark()?)?,
            op::TUPLE1 => Value::tuple(self.topmost(1)?)?,
            op::TUPLE2 => Value::tuple(self.topmost(2)?)?,
            op::TUPLE3 => Value::tuple(self.topmost(3)?)?,
            op::EMPTY_DICT => self.new_dict(),
            op::BINPERSID => Value::storage(&self.pop()?)?,
            op::REDUCE => self.reduce()?,
            _ => {
                return refused(format!(
                    "its pickle has the instruction {op:#04x} at byte {}, which plain weights do not need; {REMEDY}",
                    self.at - 1
                ));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count);
        let Some(bytes) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return damaged("its pickle ends too early");
        };
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    fn index(&mut self) -> Result<u32, Fault> {
        Ok(self.byte()?.into())
    }

    fn long_index(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Returns a two's-complement number of up to 8 bytes.
    fn long(&mut self) -> Result<Value<'a>, Fault> {
        let length = self.byte()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return damaged("its pickle has a number of more than 64 bits");
        }
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = [if negative { 0xFF } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Integer(i64::from_le_bytes(wide)))
    }

    fn text(&mut self) -> Result<Value<'a>, Fault> {
        let length = self.long_index()?;
        match std::str::from_utf8(self.take(length as usize)?) {
            Ok(text) => Ok(Value::Text(text)),
            Err(_) => damaged("its pickle has text that is not UTF-8"),
        }
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return damaged("its pickle ends within a name");
        };
        let line = self.take(length + 1)?;
        match std::str::from_utf8(&line[..length]) {
            Ok(line) => Ok(line),
            Err(_) => damaged("its pickle has a name that is not UTF-8"),
        }
    }

    fn global(&mut self) -> Result<Value<'a>, Fault> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(Value::Global(Global::named(module, name)?))
    }

    /// Lowest height of the stack that may be taken from.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// Returns the topmost values, taken off the stack.
    fn topmost(&mut self, count: usize) -> Result<Vec<Value<'a>>, Fault> {
        match self.stack.len().checked_sub(count).filter(|height| *height >= self.floor()) {
            Some(height) => Ok(self.stack.split_off(height)),
            None => damaged("its pickle takes more values than it has made"),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>, Fault> {
        let mut one = self.topmost(1)?;
        one.pop().map_or_else(|| damaged("its pickle takes more values than it has made"), Ok)
    }

    fn above_mark(&mut self) -> Result<Vec<Value<'a>>, Fault> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => damaged("its pickle ends a collection that it has not begun"),
        }
    }

    fn memorise(&mut self, index: fn(&mut Self) -> Result<u32, Fault>) -> Result<(), Fault> {
        let place = index(self)?;
        let value = self.pop()?;
        self.memo.insert(place, value.clone());
        self.stack.push(value);
        Ok(())
    }

    fn recall(&mut self, index: fn(&mut Self) -> Result<u32, Fault>) -> Result<Value<'a>, Fault> {
        let place = index(self)?;
        match self.memo.get(&place) {
            Some(value) => Ok(value.clone()),
            None => damaged(format!("its pickle recalls value {place}, which it has not made")),
        }
    }

    fn new_dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    fn set_items(&mut self, count: usize) -> Result<(), Fault> {
        let items = self.topmost(2 * count)?;
        self.set_items_of(items)
    }

    /// Adds keys and values, in turns, to the dict on top of the stack.
    fn set_items_of(&mut self, items: Vec<Value<'a>>) -> Result<(), Fault> {
        let target = self.pop()?;
        let Value::Dict(number) = target else {
            return damaged(format!("its pickle adds entries to {}", target.says()));
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let Some(value) = items.next() else { return damaged("its pickle has a key without a value") };
            self.dicts[number].push((key, value));
            self.entries += 1;
        }
        self.stack.push(target);
        Ok(())
    }

    /// Drops the attributes of a dict: a state dict's `_metadata` says nothing about its tensors.
    fn build(&mut self) -> Result<(), Fault> {
        let state = self.pop()?;
        let target = self.pop()?;
        if !matches!((&target, &state), (Value::Dict(_), Value::Dict(_))) {
            return damaged(format!("its pickle gives attributes to {}", target.says()));
        }
        self.stack.push(target);
        Ok(())
    }

    /// Returns what calling one of the known names with a tuple stands for.
    fn reduce(&mut self) -> Result<Value<'a>, Fault> {
        let arguments = self.pop()?;
        let called = self.pop()?;
        let (Value::Global(global), Value::Tuple(arguments)) = (&called, &arguments) else {
            return damaged(format!("its pickle calls {}", called.says()));
        };
        match global {
            Global::OrderedDict if arguments.items.is_empty() => Ok(self.new_dict()),
            Global::OrderedDict => damaged("its pickle makes a dict from something else"),
            Global::RebuildTensor => Value::tensor(&arguments.items),
            Global::RebuildParameter => Value::parameter(&arguments.items),
            Global::Storage(_) => damaged("its pickle makes a storage of its own"),
        }
    }
}
