//! The shapes of all states that are saved: names and types of their fields, in their order, as `tests/states.txt` has
//! them. Saved machines have no names in them, so that a state which changes its shape and not its version would be
//! read as what it is not.
use mynah::cli::build;
use mynah::machine::bios::BiosDevice;
use mynah::machine::nets::Nat;
use mynah::machine::{Machine, boards};
use mynah_cpu::CpuV2;
use mynah_devices::chipset::{
    AcpiGed, Ferr, I440fx, Ich9Lpc, Ich9Smbus, IsaDma, Piix3, Piix4Pm, Port92, Q35Mch,
};
use mynah_devices::device::Device;
use mynah_devices::display::vga::Vga;
use mynah_devices::edu::Edu;
use mynah_devices::events::A20Gate;
use mynah_devices::input::i8042::I8042;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics};
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::kind;
use mynah_devices::misc::debug_exit::DebugExit;
use mynah_devices::misc::debugcon::Debugcon;
use mynah_devices::misc::entropy::Entropy;
use mynah_devices::misc::fw_cfg::FwCfg;
use mynah_devices::misc::i6300esb::I6300Esb;
use mynah_devices::misc::pvpanic::Pvpanic;
use mynah_devices::misc::vmgenid::VmGenId;
use mynah_devices::net::e1000::{E1000, E1000e};
use mynah_devices::net::rtl8139::Rtl8139;
use mynah_devices::pci::ConfigPorts;
use mynah_devices::pci::bridge::Bridge;
use mynah_devices::serial::Serial;
use mynah_devices::storage::ahci::Ahci;
use mynah_devices::storage::floppy::Fdc;
use mynah_devices::storage::ide::{IdeDrive, Piix3Ide};
use mynah_devices::storage::nvme::{Nvme, NvmeNs};
use mynah_devices::storage::pflash::Pflash;
use mynah_devices::storage::scsi::unit::ScsiUnit;
use mynah_devices::timers::hpet::Hpet;
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::rtc::Rtc;
use mynah_devices::virtio::balloon::Balloon;
use mynah_devices::virtio::blk::Blk;
use mynah_devices::virtio::console::Console;
use mynah_devices::virtio::mmio::VirtioMmio;
use mynah_devices::virtio::net::Net;
use mynah_devices::virtio::pci::VirtioPci;
use mynah_devices::virtio::rng::Rng;
use mynah_devices::virtio::scsi::Scsi;
use serde::de::value::Error;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::collections::BTreeMap;
use std::fmt::Write;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/states.txt");

/// The structs and enums that a state is made of, by name: fields or variants, and their types.
#[derive(Default)]
struct Shapes {
    structs: BTreeMap<&'static str, Vec<(&'static str, String)>>,
    /// A variant that has not been seen has no type yet.
    enums: BTreeMap<&'static str, Vec<(&'static str, Option<String>)>>,
}

impl Shapes {
    fn note(&mut self, name: &'static str, fields: Vec<(&'static str, String)>) {
        let known = self.structs.entry(name).or_insert_with(|| fields.clone());
        assert_eq!(*known, fields, "two types in one state are called {name}");
    }
}

/// Gives a type values of no interest, and notes what it asks for. All variants of an enum are seen by doing so again.
struct Asked<'a> {
    shapes: &'a mut Shapes,
    /// The type's name.
    name: &'a mut String,
}

/// The parts of a type, one after the other.
struct Parts<'a> {
    shapes: &'a mut Shapes,
    left: usize,
    names: Vec<String>,
}

impl<'a> Parts<'a> {
    fn new(shapes: &'a mut Shapes, left: usize) -> Self {
        Self { shapes, left, names: Vec::new() }
    }

    fn next<'de, T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let mut name = String::new();
        let value = seed.deserialize(Asked { shapes: self.shapes, name: &mut name });
        self.names.push(name);
        value
    }
}

impl<'de> SeqAccess<'de> for &mut Parts<'_> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }
}

impl<'de> MapAccess<'de> for &mut Parts<'_> {
    type Error = Error;
    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.next_element_seed(seed)
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        self.next(seed)
    }
}

/// One variant of an enum.
struct Variant<'a> {
    shapes: &'a mut Shapes,
    index: u32,
    name: &'a mut String,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Self;
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let index: serde::de::value::U32Deserializer<Error> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Error;
    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let mut parts = Parts::new(self.shapes, 1);
        let value = parts.next(seed);
        *self.name = format!("({})", parts.names.join(", "));
        value
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, len);
        let value = visitor.visit_seq(&mut parts);
        *self.name = format!("({})", parts.names.join(", "));
        value
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, fields.len());
        let value = visitor.visit_seq(&mut parts);
        let named = fields.iter().zip(parts.names).map(|(field, name)| format!("{field}: {name}"));
        *self.name = format!("({})", named.collect::<Vec<_>>().join(", "));
        value
    }
}

macro_rules! plain {
    ($($method:ident $name:literal $visit:ident $value:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.name = $name.into();
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    plain! {
        deserialize_bool "bool" visit_bool false;
        deserialize_u8 "u8" visit_u8 0;
        deserialize_u16 "u16" visit_u16 0;
        deserialize_u32 "u32" visit_u32 0;
        deserialize_u64 "u64" visit_u64 0;
        deserialize_u128 "u128" visit_u128 0;
        deserialize_i8 "i8" visit_i8 0;
        deserialize_i16 "i16" visit_i16 0;
        deserialize_i32 "i32" visit_i32 0;
        deserialize_i64 "i64" visit_i64 0;
        deserialize_i128 "i128" visit_i128 0;
        deserialize_f32 "f32" visit_f32 0.0;
        deserialize_f64 "f64" visit_f64 0.0;
        deserialize_char "char" visit_char 'x';
        deserialize_str "string" visit_str "";
        deserialize_string "string" visit_str "";
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("a state has types"))
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // An array says only here how many it takes: "a byte array of length 4".
        let expected = (&visitor as &dyn Expected).to_string();
        let len: Option<usize> = expected.rsplit(' ').next().and_then(|n| n.parse().ok());
        *self.name = len.map_or("bytes".into(), |len| format!("bytes[{len}]"));
        visitor.visit_bytes(&vec![0; len.unwrap_or(0)])
    }
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = String::new();
        let value = visitor.visit_some(Asked { shapes: self.shapes, name: &mut inner });
        *self.name = format!("Option<{inner}>");
        value
    }
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.name = "()".into();
        visitor.visit_unit()
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut inner = String::new();
        let value = visitor.visit_newtype_struct(Asked { shapes: self.shapes, name: &mut inner });
        self.shapes.note(name, vec![("0", inner)]);
        *self.name = name.into();
        value
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, 1);
        let value = visitor.visit_seq(&mut parts);
        *self.name = format!("[{}]", parts.names.join(", "));
        value
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, 1);
        let value = visitor.visit_map(&mut parts);
        *self.name = format!("{{{}}}", parts.names.join(": "));
        value
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, len);
        let value = visitor.visit_seq(&mut parts);
        let names = parts.names;
        *self.name = match &names[..] {
            [first, rest @ ..] if rest.iter().all(|n| n == first) => format!("[{first}; {len}]"),
            _ => format!("({})", names.join(", ")),
        };
        value
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, len);
        let value = visitor.visit_seq(&mut parts);
        let names = parts.names;
        self.shapes.note(name, vec![("0", format!("({})", names.join(", ")))]);
        *self.name = name.into();
        value
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut parts = Parts::new(self.shapes, fields.len());
        let value = visitor.visit_seq(&mut parts);
        let named = fields.iter().copied().zip(parts.names).collect();
        self.shapes.note(name, named);
        *self.name = name.into();
        value
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let seen =
            self.shapes.enums.entry(name).or_insert_with(|| variants.iter().map(|v| (*v, None)).collect());
        let index = seen.iter().position(|(_, inner)| inner.is_none()).unwrap_or(0);
        let mut inner = String::new();
        let value =
            visitor.visit_enum(Variant { shapes: self.shapes, index: index as u32, name: &mut inner });
        self.shapes.enums.get_mut(name).expect("it is there")[index].1 = Some(inner);
        *self.name = name.into();
        value
    }
}

/// The shape of `T`: its name, and all that it is made of.
fn shape<T: DeserializeOwned>() -> String {
    let (mut shapes, mut name) = (Shapes::default(), String::new());
    loop {
        T::deserialize(Asked { shapes: &mut shapes, name: &mut name })
            .expect("values of no interest will do");
        if shapes.enums.values().flatten().all(|(_, inner)| inner.is_some()) {
            break;
        }
    }
    let mut text = format!("  {name}\n");
    for (name, fields) in &shapes.structs {
        writeln!(text, "  struct {name}").unwrap();
        fields.iter().for_each(|(field, of)| writeln!(text, "    {field}: {of}").unwrap());
    }
    for (name, variants) in &shapes.enums {
        writeln!(text, "  enum {name}").unwrap();
        for (variant, inner) in variants {
            writeln!(text, "    {variant}{}", inner.as_deref().unwrap_or_default()).unwrap();
        }
    }
    text
}

/// Kind, version and shape.
type Row = (String, u16, String);

fn of<D: Device>() -> Row {
    (D::KIND.into(), D::VERSION, shape::<D::State>())
}

/// All states that there are.
fn rows() -> Vec<Row> {
    let mut rows = vec![
        (CpuV2::KIND.into(), CpuV2::VERSION, shape::<CpuV2>()),
        of::<A20Gate>(),
        of::<Ahci>(),
        of::<BiosDevice>(),
        of::<Bridge<false>>(),
        of::<Bridge<true>>(),
        of::<ConfigPorts>(),
        of::<DebugExit>(),
        of::<Debugcon>(),
        of::<Edu>(),
        of::<E1000>(),
        of::<E1000e>(),
        of::<Nat>(),
        of::<Fdc>(),
        of::<Ferr>(),
        of::<Entropy>(),
        of::<IsaDma>(),
        of::<Pflash>(),
        of::<FwCfg>(),
        of::<Hpet>(),
        of::<I440fx>(),
        of::<I8042>(),
        of::<Ich9Lpc>(),
        of::<Ich9Smbus>(),
        of::<IdeDrive<false>>(),
        of::<IdeDrive<true>>(),
        of::<Ioapic>(),
        of::<LocalApic>(),
        of::<LocalApics>(),
        of::<Pic>(),
        of::<Piix3>(),
        of::<Piix3Ide>(),
        of::<Piix4Pm>(),
        of::<AcpiGed>(),
        of::<Pit>(),
        of::<Port92>(),
        of::<Pvpanic>(),
        of::<I6300Esb>(),
        of::<VmGenId>(),
        of::<Q35Mch>(),
        of::<Rtc>(),
        of::<Rtl8139>(),
        of::<Serial>(),
        of::<VirtioPci<Balloon>>(),
        of::<VirtioPci<Blk>>(),
        of::<VirtioPci<Console>>(),
        of::<VirtioPci<Rng>>(),
        of::<VirtioPci<Net>>(),
        of::<VirtioPci<Scsi>>(),
        of::<VirtioMmio<Balloon>>(),
        of::<VirtioMmio<Blk>>(),
        of::<VirtioMmio<Console>>(),
        of::<VirtioMmio<Rng>>(),
        of::<VirtioMmio<Net>>(),
        of::<VirtioMmio<Scsi>>(),
        of::<Nvme>(),
        of::<NvmeNs>(),
        of::<ScsiUnit<false>>(),
        of::<ScsiUnit<true>>(),
        of::<Vga>(),
    ];
    rows.sort();
    rows
}

/// The rows of a file, and back.
fn parse(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix(' '), rows.last_mut()) {
            (Some(_), Some((_, _, shape))) => *shape += &format!("{line}\n"),
            _ => {
                let (kind, version) =
                    line.split_once(" version ").expect("a row begins with kind and version");
                rows.push((kind.into(), version.parse().unwrap(), String::new()));
            }
        }
    }
    rows
}

fn text(rows: &[Row]) -> String {
    rows.iter().map(|(kind, version, shape)| format!("{kind} version {version}\n{shape}")).collect()
}

/// What is wrong with `new`, if `old` is what machines have been saved in.
fn differences(old: &[Row], new: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (kind, version, shape) in new {
        match old.iter().find(|(k, ..)| k == kind) {
            Some((_, v, s)) if v == version && s != shape => wrong.push(format!(
                "the state of '{kind}' has another shape, and version {version} as before: a machine that was saved \
                 earlier would be read as what it is not. Count up its VERSION, then write the file anew with \
                 MYNAH_BLESS=1. It was\n{s}and is\n{shape}"
            )),
            Some((_, v, s)) if v != version || s != shape => wrong.push(format!(
                "the state of '{kind}' has version {version}, and {v} in the file: write it anew with MYNAH_BLESS=1"
            )),
            None => wrong.push(format!("'{kind}' is new: write the file anew with MYNAH_BLESS=1")),
            _ => {}
        }
    }
    let gone = old.iter().filter(|(kind, ..)| new.iter().all(|(k, ..)| k != kind));
    wrong.extend(gone.map(|(kind, ..)| format!("'{kind}' is gone: write the file anew with MYNAH_BLESS=1")));
    wrong
}

#[test]
fn no_state_changes_its_shape_without_a_new_version() {
    let (old, new) = (parse(&std::fs::read_to_string(FILE).unwrap_or_default()), rows());
    let mut wrong = differences(&old, &new);
    if std::env::var_os("MYNAH_BLESS").is_some() {
        // Another shape of the same version is nothing to bless.
        wrong.retain(|w| w.contains("version") && w.contains("as before"));
        if wrong.is_empty() {
            std::fs::write(FILE, text(&new)).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_device_has_its_state_in_the_list() {
    let folder = std::env::temp_dir().join(format!("mynah-states-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kernel = folder.join("kernel");
    std::fs::write(&kernel, mynah_guests::embedded::image().unwrap()).unwrap();
    let rows = rows();
    for board in boards::ALL {
        let mut words = vec!["-M", board.name, "-m", "16", "-kernel", kernel.to_str().unwrap()];
        words.extend(["-display", "none", "-serial", "null", "-chardev", "null,id=c,mux=on"]);
        let mut words: Vec<_> = words.into_iter().map(std::ffi::OsString::from).collect();
        for kind in kind::all().into_iter().filter(|k| match k.bus {
            kind::Bus::Isa => true,
            kind::Bus::VirtioMmio => !board.pci,
            kind::Bus::Scsi | kind::Bus::VirtioSerial => true,
            _ if k.name == "pcie-root-port" => board.sata,
            _ => board.pci,
        }) {
            let mut device = kind.name.to_owned();
            for property in kind.properties {
                match property.kind {
                    kind::Type::Chardev => device.push_str(&format!(",{}=c", property.name)),
                    kind::Type::Drive => {
                        let disk = folder.join(kind.name);
                        std::fs::write(&disk, [0; 1 << 16]).unwrap();
                        let drive = format!("if=none,format=raw,id={},file={}", kind.name, disk.display());
                        words.extend(["-drive".into(), drive.into()]);
                        device.push_str(&format!(",{}={}", property.name, kind.name));
                    }
                    _ => {}
                }
            }
            words.extend(["-device".into(), device.into()]);
        }
        let config = build::config("mynah run", &words).unwrap();
        let machine = Machine::new(config).unwrap();
        let mut kinds: Vec<&str> = machine.handle().devices().into_iter().map(|(_, _, kind)| kind).collect();
        kinds.sort();
        kinds.dedup();
        assert!(kinds.len() >= 12, "{kinds:?}");
        for kind in kinds {
            assert!(rows.iter().any(|(k, ..)| k == kind), "rows() in this file lacks the device '{kind}'");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_field_that_changes_is_told_of_with_what_to_do() {
    let row = |version, shape: &str| ("pit".to_owned(), version, shape.to_owned());
    let old = [row(1, "  struct A\n    a: u8\n")];
    assert_eq!(parse(&text(&old)), old);
    let wrong = |new: &[Row]| differences(&old, new).join("\n");
    assert_eq!(wrong(&old), "");
    assert!(wrong(&[row(1, "  struct A\n    a: u16\n")]).contains("Count up its VERSION"));
    assert!(wrong(&[row(2, "  struct A\n    a: u16\n")]).contains("has version 2, and 1 in the file"));
    assert!(wrong(&[]).contains("'pit' is gone"));
}
