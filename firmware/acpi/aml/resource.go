package aml

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Resource descriptor tags (ACPI, "Resource Data Types for ACPI").
const (
	tagIRQNoFlags    = 0x22 // small, 2 bytes
	tagIO            = 0x47 // small, 7 bytes
	tagEnd           = 0x79 // small, 1 byte
	tagMemory32Fixed = 0x86
	tagDWordSpace    = 0x87
	tagQWordSpace    = 0x8A
)

// An AddressFlags says how a device uses an address space range.
type AddressFlags struct {
	Producer     bool // the range is handed on to child devices
	Cacheable    bool
	Prefetchable bool
	ReadOnly     bool
}

func (f AddressFlags) general() byte {
	const minFixed, maxFixed = 1 << 2, 1 << 3
	if f.Producer {
		return minFixed | maxFixed
	}
	return minFixed | maxFixed | 1
}

func (f AddressFlags) memory() byte {
	var b byte
	if !f.ReadOnly {
		b |= 1
	}
	switch {
	case f.Prefetchable:
		b |= 3 << 1
	case f.Cacheable:
		b |= 1 << 1
	}
	return b
}

// ResourceTemplate is the buffer of a _CRS made of the given descriptors.
func ResourceTemplate(descriptors ...[]byte) []byte {
	// A checksum byte of 0 means that there is none (ACPI, "End Tag").
	return Buffer(concat(concat(descriptors...), []byte{tagEnd, 0}))
}

// IO is a fixed range of n ports from base on, with 16-bit decode.
func IO(base uint16, n uint8) []byte {
	if n == 0 || uint32(base)+uint32(n) > 1<<16 {
		panic(fmt.Sprintf("aml: %d ports at %#x", n, base))
	}
	b := []byte{tagIO, 1}
	b = binary.LittleEndian.AppendUint16(b, base)
	b = binary.LittleEndian.AppendUint16(b, base)
	return append(b, 1, n)
}

// IRQNoFlags is a set of ISA interrupts, edge triggered, active high and not
// shared.
func IRQNoFlags(irqs ...int) []byte {
	var mask uint16
	for _, i := range irqs {
		if i < 0 || i > 15 {
			panic(fmt.Sprintf("aml: ISA interrupt %d", i))
		}
		mask |= 1 << i
	}
	return binary.LittleEndian.AppendUint16([]byte{tagIRQNoFlags}, mask)
}

// Memory32Fixed is a fixed memory range below 4 GiB. Drivers that look for
// address space descriptors do not see it.
func Memory32Fixed(base, size uint32, writable bool) []byte {
	b := []byte{tagMemory32Fixed, 9, 0, 0}
	if writable {
		b[3] = 1
	}
	b = binary.LittleEndian.AppendUint32(b, base)
	return binary.LittleEndian.AppendUint32(b, size)
}

// DWordMemory is a memory range below 4 GiB as an address space descriptor.
func DWordMemory(base, size uint64, f AddressFlags) []byte {
	if size == 0 || base > math.MaxUint32 || size > 1<<32-base {
		panic(fmt.Sprintf("aml: %#x bytes at %#x as a 32-bit range", size, base))
	}
	b := []byte{tagDWordSpace, 0, 0, 0, f.general(), f.memory()} // type 0: memory
	for _, v := range []uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	binary.LittleEndian.PutUint16(b[1:], uint16(len(b)-3))
	return b
}

// QWordMemory is a memory range as a 64-bit address space descriptor.
func QWordMemory(base, size uint64, f AddressFlags) []byte {
	if size == 0 || base+(size-1) < base {
		panic(fmt.Sprintf("aml: %#x bytes at %#x as a 64-bit range", size, base))
	}
	b := []byte{tagQWordSpace, 0, 0, 0, f.general(), f.memory()} // type 0: memory
	for _, v := range []uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	binary.LittleEndian.PutUint16(b[1:], uint16(len(b)-3))
	return b
}
