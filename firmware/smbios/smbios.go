package smbios

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/hvpost/hvpost/guest"
)

// Base is where the entry point goes: the start of the area that guests scan
// in steps of 16 bytes (DSP0134, "Accessing SMBIOS information").
const Base guest.GPA = 0xF0000

// Room is the size of that area in bytes.
const Room = 0x10000

const entryLen = 24 // "_SM3_" entry point, padded to 32

// A Config is what the tables say. Empty strings become defaults.
type Config struct {
	VPs     int
	Memory  uint64   // bytes of RAM
	Version string   // of this program, shown as firmware version
	UUID    [16]byte // of the system, in the order it is printed; zero for none
	Serial  string   // of the system
	OEM     []string // OEM strings (type 11), where guests look for credentials
}

// maxStrings bounds the OEM strings: their count is one byte.
const maxStrings = 255

// Structure types used.
const (
	typeFirmware    = 0
	typeSystem      = 1
	typeChassis     = 3
	typeProcessor   = 4
	typeOEMStrings  = 11
	typeMemoryArray = 16
	typeMemory      = 17
	typeMemoryMap   = 19
	typeBootInfo    = 32
	typeEnd         = 127
)

// Handles by which structures refer to each other.
const (
	handleFirmware    = 0x0000
	handleSystem      = 0x0100
	handleChassis     = 0x0300
	handleProcessor   = 0x0400
	handleOEM         = 0x0B00
	handleMemoryArray = 0x1000
	handleMemory      = 0x1100
	handleMemoryMap   = 0x1300
	handleBootInfo    = 0x2000
	handleEnd         = 0x7F00
	noHandle          = 0xFFFE
)

var le = binary.LittleEndian

// A structure is one SMBIOS structure in the making.
type structure struct {
	formatted []byte // with its four-byte header
	strings   []string
}

func newStructure(typ byte, handle uint16) *structure {
	return &structure{formatted: []byte{typ, 0, byte(handle), byte(handle >> 8)}}
}

func (s *structure) u8(v ...uint8) { s.formatted = append(s.formatted, v...) }
func (s *structure) u16(v uint16)  { s.formatted = le.AppendUint16(s.formatted, v) }
func (s *structure) u32(v uint32)  { s.formatted = le.AppendUint32(s.formatted, v) }
func (s *structure) u64(v uint64)  { s.formatted = le.AppendUint64(s.formatted, v) }

// text adds a reference to a string; an empty one has number 0.
func (s *structure) text(v string) {
	if v == "" {
		s.u8(0)
		return
	}
	s.strings = append(s.strings, v)
	s.u8(uint8(len(s.strings)))
}

// bytes returns the formatted area, the strings and the terminator.
func (s *structure) bytes() []byte {
	b := append([]byte(nil), s.formatted...)
	b[1] = byte(len(b))
	for _, v := range s.strings {
		b = append(append(b, v...), 0)
	}
	if len(s.strings) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// Build returns the entry point and the tables behind it, to be placed at
// Base.
func Build(c Config) ([]byte, error) {
	if c.VPs < 1 || c.VPs > 0xFFFF {
		return nil, fmt.Errorf("smbios: %d virtual processors: must be 1 to 65535", c.VPs)
	}
	if len(c.OEM) > maxStrings {
		return nil, fmt.Errorf("smbios: %d OEM strings: at most %d", len(c.OEM), maxStrings)
	}
	for _, s := range append([]string{c.Version, c.Serial}, c.OEM...) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, fmt.Errorf("smbios: string %q holds a zero byte", s)
		}
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	var table []byte
	for _, s := range structures(c) {
		table = append(table, s.bytes()...)
	}
	const tableOff = 32
	b := make([]byte, tableOff)
	copy(b, "_SM3_")
	b[6] = entryLen
	b[7], b[8], b[9] = 3, 0, 0 // version 3.0.0
	b[10] = 1                  // entry point revision
	le.PutUint32(b[12:], uint32(len(table)))
	le.PutUint64(b[16:], uint64(Base)+tableOff)
	var sum byte
	for _, v := range b[:entryLen] {
		sum += v
	}
	b[5] = -sum
	b = append(b, table...)
	if len(b) > Room {
		return nil, fmt.Errorf("smbios: %d bytes of tables do not fit into %d; give fewer OEM strings", len(b), Room)
	}
	return b, nil
}

// Write puts the tables into guest memory at Base.
func Write(mem *guest.Memory, c Config) error {
	b, err := Build(c)
	if err != nil {
		return err
	}
	if err := mem.WriteAt(b, Base); err != nil {
		return fmt.Errorf("smbios: tables: %w", err)
	}
	return nil
}

const (
	maker   = "Microsoft Corporation"
	product = "Virtual Machine"
)

func structures(c Config) []*structure {
	list := []*structure{firmware(c), system(c), chassis(), processor(c)}
	if len(c.OEM) != 0 {
		s := newStructure(typeOEMStrings, handleOEM)
		s.u8(uint8(len(c.OEM)))
		for _, v := range c.OEM {
			s.strings = append(s.strings, cmp.Or(v, " ")) // an empty one would end the list
		}
		list = append(list, s)
	}
	list = append(list, memoryArray(c))
	list = append(list, memory(c)...)
	return append(list, bootInfo(), newStructure(typeEnd, handleEnd))
}

func firmware(c Config) *structure {
	s := newStructure(typeFirmware, handleFirmware)
	s.text("hvpost")
	s.text(c.Version)
	s.u16(0xF000)    // segment of the runtime code
	s.text("")       // release date
	s.u8(0)          // ROM of 64 KiB
	s.u64(1 << 3)    // characteristics: not supported
	s.u8(0, 1<<4)    // extension bytes: 2.4 bit 4, a virtual machine
	s.u8(0xFF, 0xFF) // firmware release: see the version string
	s.u8(0xFF, 0xFF) // no embedded controller
	return s
}

func system(c Config) *structure {
	s := newStructure(typeSystem, handleSystem)
	s.text(maker)
	s.text(product)
	s.text("hvpost " + c.Version)
	s.text(c.Serial)
	// The first three fields of the UUID are little-endian (DSP0134, "System
	// — UUID").
	u := c.UUID
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	s.u8(u[:]...)
	s.u8(6)    // wake-up by the power switch
	s.text("") // SKU
	s.text(product)
	return s
}

func chassis() *structure {
	const other, safe, none = 1, 3, 3
	s := newStructure(typeChassis, handleChassis)
	s.text(maker)
	s.u8(other)
	s.text("") // version
	s.text("") // serial number
	s.text("") // asset tag: a well-known one would claim to be a cloud
	s.u8(safe, safe, safe, none)
	s.u32(0)   // OEM
	s.u8(0, 1) // height unspecified, power cords unspecified
	s.u8(0, 0) // no contained elements
	s.text("") // SKU
	return s
}

func processor(c Config) *structure {
	const (
		central, other, unknown = 3, 1, 2
		populatedEnabled        = 1<<6 | 1
		capable64, multiCore    = 1 << 2, 1 << 3
	)
	s := newStructure(typeProcessor, handleProcessor)
	s.text("CPU 0")
	s.u8(central, other)
	s.text(maker)
	s.u64(0)   // CPUID says better
	s.text("") // version
	s.u8(0)    // voltage unknown
	s.u16(0)   // external clock unknown
	s.u16(0)   // maximum speed unknown
	s.u16(0)   // speed unknown
	s.u8(populatedEnabled, other)
	for range 3 {
		s.u16(0xFFFF) // caches are not described
	}
	s.text("") // serial number
	s.text("") // asset tag
	s.text("") // part number
	short := uint8(min(c.VPs, 0xFF))
	s.u8(short, short, short) // cores, enabled cores, threads
	flags := uint16(capable64)
	if c.VPs > 1 {
		flags |= multiCore
	}
	s.u16(flags)
	s.u16(unknown) // family, in the second field
	s.u16(uint16(c.VPs))
	s.u16(uint16(c.VPs))
	s.u16(uint16(c.VPs))
	return s
}

func memoryArray(c Config) *structure {
	const systemBoard, systemMemory, multiBitECC = 3, 3, 6
	s := newStructure(typeMemoryArray, handleMemoryArray)
	s.u8(systemBoard, systemMemory, multiBitECC)
	s.u32(0x80000000) // capacity: see the extended field
	s.u16(noHandle)   // no error information
	s.u16(1)          // devices
	s.u64(c.Memory)
	return s
}

// memory returns the one memory device and where it appears: below 3 GiB, and
// the rest from 4 GiB on.
func memory(c Config) []*structure {
	const (
		dimm, ram, unknownDetail = 9, 7, 1 << 2
		maxShort                 = 0x7FFF // MiB in the short size field
	)
	s := newStructure(typeMemory, handleMemory)
	s.u16(handleMemoryArray)
	s.u16(noHandle)
	s.u16(64) // total width, bits
	s.u16(64) // data width
	size := c.Memory >> 20
	if size >= maxShort {
		s.u16(maxShort)
	} else {
		s.u16(uint16(size))
	}
	s.u8(dimm, 0) // form factor; in no set
	s.text("M0001")
	s.text("") // bank
	s.u8(ram)
	s.u16(unknownDetail)
	s.u16(0) // speed unknown
	s.text(maker)
	s.text("") // serial number
	s.text("") // asset tag
	s.text("") // part number
	s.u8(0)    // rank unknown
	if size >= maxShort {
		s.u32(uint32(min(size, 0x7FFFFFFF)))
	} else {
		s.u32(0)
	}
	s.u16(0) // configured speed unknown
	s.u16(0) // voltages unknown
	s.u16(0)
	s.u16(0)
	return append([]*structure{s}, memoryMaps(c.Memory)...)
}

const (
	lowLimit = 0xC0000000 // RAM below 4 GiB ends here
	highBase = 1 << 32
)

func memoryMaps(size uint64) []*structure {
	one := func(n uint16, base, size uint64) *structure {
		s := newStructure(typeMemoryMap, handleMemoryMap+n)
		// The short fields count KiB; this value refers to the long ones.
		s.u32(0xFFFFFFFF)
		s.u32(0xFFFFFFFF)
		s.u16(handleMemoryArray)
		s.u8(1) // partition width
		s.u64(base)
		s.u64(base + size - 1)
		return s
	}
	low := min(size, lowLimit)
	maps := []*structure{one(0, 0, low)}
	if size > low {
		maps = append(maps, one(1, highBase, size-low))
	}
	return maps
}

func bootInfo() *structure {
	s := newStructure(typeBootInfo, handleBootInfo)
	s.u8(0, 0, 0, 0, 0, 0) // reserved
	s.u8(0)                // no errors
	return s
}
