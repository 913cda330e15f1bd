//! What a pickle of tensors is made of, and the only names that it may ask for.

use super::super::{Fault, REMEDY, damaged, refused};
use super::{MAX_DEPTH, printable};
use std::rc::Rc;
use tch::Kind;

/// No tensor of a language model has more.
const MAX_DIMENSIONS: usize = 8;

/// A number format of a storage.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Format {
    /// Its class in torch.
    class: &'static str,
    /// As safetensors spells it, for messages.
    pub(in super::super) dtype: &'static str,
    /// The same as a kind; `None` if libtorch has none that we use.
    pub(in super::super) kind: Option<Kind>,
    /// Bytes of a number.
    pub(in super::super) bytes: u64,
}

const fn format(class: &'static str, dtype: &'static str, kind: Option<Kind>, bytes: u64) -> Format {
    Format { class, dtype, kind, bytes }
}

static FORMATS: [Format; 12] = [
    format("FloatStorage", "F32", Some(Kind::Float), 4),
    format("HalfStorage", "F16", Some(Kind::Half), 2),
    format("BFloat16Storage", "BF16", Some(Kind::BFloat16), 2),
    format("DoubleStorage", "F64", Some(Kind::Double), 8),
    format("LongStorage", "I64", Some(Kind::Int64), 8),
    format("IntStorage", "I32", Some(Kind::Int), 4),
    format("ShortStorage", "I16", Some(Kind::Int16), 2),
    format("CharStorage", "I8", Some(Kind::Int8), 1),
    format("ByteStorage", "U8", Some(Kind::Uint8), 1),
    format("BoolStorage", "BOOL", Some(Kind::Bool), 1),
    format("ComplexFloatStorage", "C64", None, 8),
    format("ComplexDoubleStorage", "C128", None, 16),
];

/// The names that a pickle may ask for. None of them is ever called; each stands for a shape of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(&'static Format),
}

impl Global {
    /// Returns the name `module.name`, if it is one that tensors need.
    pub(super) fn named(module: &str, name: &str) -> Result<Self, Fault> {
        let storage = || FORMATS.iter().find(|format| format.class == name).filter(|_| module == "torch");
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            _ => match storage() {
                Some(format) => Ok(Self::Storage(format)),
                None => refused(format!(
                    "its pickle asks for '{}.{}', which plain weights do not need, so it is refused and nothing of it is run; if you trust the source, {REMEDY}",
                    printable(module),
                    printable(name)
                )),
            },
        }
    }
}

/// The numbers behind one or more tensors.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Storage<'a> {
    /// Its entry in the archive, below `data/`.
    pub(in super::super) key: &'a str,
    pub(in super::super) format: &'static Format,
    /// How many numbers it holds.
    pub(in super::super) numbers: u64,
}

/// A tensor: a view into a storage. Strides and offset count numbers.
#[derive(Debug)]
pub(in super::super) struct Stored<'a> {
    pub(in super::super) storage: Storage<'a>,
    pub(in super::super) offset: u64,
    pub(in super::super) shape: Vec<u64>,
    /// As many as the shape has dimensions.
    pub(in super::super) strides: Vec<u64>,
}

/// A tuple; shared, because the memo may hand it out often.
#[derive(Debug)]
pub(super) struct Tuple<'a> {
    pub(super) items: Vec<Value<'a>>,
    depth: usize,
}

/// A value. Cheap to clone: what can be large is shared.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Integer(i64),
    Text(&'a str),
    Global(Global),
    Tuple(Rc<Tuple<'a>>),
    /// Number of a dict of the machine: dicts change after they are made.
    Dict(usize),
    Storage(Storage<'a>),
    Tensor(Rc<Stored<'a>>),
}

impl Value<'_> {
    /// Returns a tuple, unless it is nested so deeply that dropping it might exhaust the stack.
    pub(super) fn tuple(items: Vec<Self>) -> Result<Self, Fault> {
        let below = items.iter().map(|item| if let Self::Tuple(inner) = item { inner.depth } else { 0 }).max();
        let depth = 1 + below.unwrap_or(0);
        if depth > MAX_DEPTH {
            return damaged("nests tuples deeper than tensors do");
        }
        Ok(Self::Tuple(Rc::new(Tuple { items, depth })))
    }

    /// Returns the storage that a persistent id stands for: ('storage', class, key, device, numbers).
    pub(super) fn storage(id: &Self) -> Result<Self, Fault> {
        let Self::Tuple(id) = id else { return damaged(format!("refers to {} as a storage", id.says())) };
        let [Self::Text("storage"), class, Self::Text(key), Self::Text(_), Self::Integer(numbers)] =
            id.items.as_slice()
        else {
            return damaged("refers to something outside of itself that is no storage");
        };
        let (Self::Global(Global::Storage(format)), Ok(numbers)) = (class, u64::try_from(*numbers)) else {
            return damaged(format!("describes storage '{}' wrongly", printable(key)));
        };
        Ok(Self::Storage(Storage { key, format, numbers }))
    }

    /// Returns the tensor of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.
    pub(super) fn tensor(arguments: &[Self]) -> Result<Self, Fault> {
        let (Some(arguments), more) = (arguments.get(..6), arguments.get(6..).unwrap_or_default()) else {
            return damaged("describes a tensor with too few words");
        };
        let [Self::Storage(storage), Self::Integer(offset), shape, strides, Self::Bool, Self::Dict(_)] = arguments
        else {
            return damaged("describes a tensor wrongly");
        };
        // a seventh word may ask for conjugated or negated numbers
        if !matches!(more, [] | [Self::None]) {
            return refused(format!("holds a tensor with numbers to be changed on reading; {REMEDY}"));
        }
        let (shape, strides) = (shape.sizes()?, strides.sizes()?);
        let Ok(offset) = u64::try_from(*offset) else {
            return damaged("holds a tensor that begins before its storage");
        };
        if shape.len() != strides.len() {
            return damaged(format!("holds a tensor {shape:?} with strides {strides:?}"));
        }
        Ok(Self::Tensor(Rc::new(Stored { storage: *storage, offset, shape, strides })))
    }

    /// Returns the tensor of `_rebuild_parameter(tensor, requires_grad, hooks)`.
    pub(super) fn parameter(arguments: &[Self]) -> Result<Self, Fault> {
        match arguments {
            [Self::Tensor(tensor), Self::Bool, Self::Dict(_)] => Ok(Self::Tensor(Rc::clone(tensor))),
            _ => damaged("describes a parameter wrongly"),
        }
    }

    /// Returns the numbers of a tuple of sizes or strides.
    fn sizes(&self) -> Result<Vec<u64>, Fault> {
        let size = |item: &Self| if let Self::Integer(n) = item { u64::try_from(*n).ok() } else { None };
        // The same tuple may serve thousands of tensors: each copies it, so it must be short.
        let few = |tuple: &&Tuple| tuple.items.len() <= MAX_DIMENSIONS;
        let tuple = if let Self::Tuple(tuple) = self { Some(&**tuple).filter(few) } else { None };
        let sizes = tuple.and_then(|tuple| tuple.items.iter().map(size).collect());
        sizes.map_or_else(|| damaged("holds a tensor whose shape or strides are no numbers, or too many"), Ok)
    }

    /// Returns what kind of value this is, for messages.
    pub(super) fn says(&self) -> String {
        match self {
            Self::None => "nothing".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Integer(n) => format!("the number {n}"),
            Self::Text(text) => format!("the text '{}'", printable(text)),
            Self::Global(_) => "a name".to_owned(),
            Self::Tuple(_) => "a tuple".to_owned(),
            Self::Dict(_) => "a dict".to_owned(),
            Self::Storage(_) => "a storage".to_owned(),
            Self::Tensor(_) => "a tensor".to_owned(),
        }
    }
}
