package aml

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// Opcodes and prefixes (ACPI, table "AML Byte Stream Byte Values").
const (
	opZero        = 0x00
	opOne         = 0x01
	opName        = 0x08
	prefixByte    = 0x0A
	prefixWord    = 0x0B
	prefixDWord   = 0x0C
	prefixString  = 0x0D
	prefixQWord   = 0x0E
	opScope       = 0x10
	opBuffer      = 0x11
	opPackage     = 0x12
	opMethod      = 0x14
	prefixDual    = 0x2E
	prefixMulti   = 0x2F
	prefixExt     = 0x5B
	extDevice     = 0x82
	rootChar      = 0x5C
	parentChar    = 0x5E
	opLocal0      = 0x60
	opArg0        = 0x68
	opStore       = 0x70
	opReturn      = 0xA4
	opOnes        = 0xFF
	segmentLength = 4
)

// PkgLength encodes the length of a package whose contents, after the length
// itself, are n bytes. The encoded value counts the length's own bytes, 1 to
// 4 of them.
func PkgLength(n int) []byte {
	switch {
	case n < 0:
		panic("aml: negative package length")
	case n+1 < 1<<6:
		return []byte{byte(n + 1)}
	case n+2 < 1<<12:
		v := n + 2
		return []byte{1<<6 | byte(v&0xF), byte(v >> 4)}
	case n+3 < 1<<20:
		v := n + 3
		return []byte{2<<6 | byte(v&0xF), byte(v >> 4), byte(v >> 12)}
	case n+4 < 1<<28:
		v := n + 4
		return []byte{3<<6 | byte(v&0xF), byte(v >> 4), byte(v >> 12), byte(v >> 20)}
	}
	panic(fmt.Sprintf("aml: package of %d bytes", n))
}

// Path encodes a NameString: segments of one to four characters joined with
// dots, with an optional leading backslash or carets. Segments are padded
// with underscores.
func Path(path string) []byte {
	var b []byte
	rest := path
	if strings.HasPrefix(rest, `\`) {
		b, rest = append(b, rootChar), rest[1:]
	}
	for absolute := len(b) > 0; !absolute && strings.HasPrefix(rest, "^"); {
		b, rest = append(b, parentChar), rest[1:]
	}
	if rest == "" {
		if len(b) == 0 {
			panic("aml: empty name")
		}
		return append(b, 0) // NullName: the root or a parent itself
	}
	segs := strings.Split(rest, ".")
	switch {
	case len(segs) == 2:
		b = append(b, prefixDual)
	case len(segs) > math.MaxUint8:
		panic("aml: name of more than 255 segments: " + path)
	case len(segs) > 2:
		b = append(b, prefixMulti, byte(len(segs)))
	}
	for _, s := range segs {
		if !validSegment(s) {
			panic(fmt.Sprintf("aml: bad name segment %q in %q", s, path))
		}
		b = append(b, s...)
		b = append(b, "____"[:segmentLength-len(s)]...)
	}
	return b
}

func validSegment(s string) bool {
	if len(s) < 1 || len(s) > segmentLength {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'A' && c <= 'Z' || c == '_'
		digit := c >= '0' && c <= '9'
		if !letter && (i == 0 || !digit) {
			return false
		}
	}
	return true
}

// Integer encodes v in the fewest bytes.
func Integer(v uint64) []byte {
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v == math.MaxUint64:
		return []byte{opOnes}
	case v <= math.MaxUint8:
		return []byte{prefixByte, byte(v)}
	case v <= math.MaxUint16:
		return binary.LittleEndian.AppendUint16([]byte{prefixWord}, uint16(v))
	case v <= math.MaxUint32:
		return binary.LittleEndian.AppendUint32([]byte{prefixDWord}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64([]byte{prefixQWord}, v)
}

// String encodes a string of ASCII characters other than NUL.
func String(s string) []byte {
	for _, c := range []byte(s) {
		if c == 0 || c > 0x7F {
			panic(fmt.Sprintf("aml: string %q is not ASCII", s))
		}
	}
	return append(append([]byte{prefixString}, s...), 0)
}

// EISAID encodes a seven-character PNP identifier such as "PNP0501" as the
// compressed integer that _HID takes.
func EISAID(id string) []byte {
	if len(id) != 7 {
		panic("aml: EISA id of other than 7 characters: " + id)
	}
	var v uint32
	for _, c := range []byte(id[:3]) {
		if c < 'A' || c > 'Z' {
			panic("aml: EISA id without three capital letters: " + id)
		}
		v = v<<5 | uint32(c-'@')
	}
	for _, c := range []byte(id[3:]) {
		d := strings.IndexByte("0123456789ABCDEF", c)
		if d < 0 {
			panic("aml: EISA id without four hex digits: " + id)
		}
		v = v<<4 | uint32(d)
	}
	// The id is stored big-endian, and an integer is not.
	return binary.BigEndian.AppendUint32([]byte{prefixDWord}, v)
}

// Name defines an object under a name.
func Name(path string, object []byte) []byte {
	return concat([]byte{opName}, Path(path), object)
}

// Scope opens an existing scope for the terms in body.
func Scope(path string, body ...[]byte) []byte {
	return pack([]byte{opScope}, Path(path), concat(body...))
}

// Device defines a device with the terms in body.
func Device(path string, body ...[]byte) []byte {
	return pack([]byte{prefixExt, extDevice}, Path(path), concat(body...))
}

// Method defines a control method of 0 to 7 arguments. A serialized method
// is entered by one thread at a time.
func Method(path string, args int, serialized bool, body ...[]byte) []byte {
	if args < 0 || args > 7 {
		panic(fmt.Sprintf("aml: method %s with %d arguments", path, args))
	}
	flags := byte(args)
	if serialized {
		flags |= 1 << 3
	}
	return pack([]byte{opMethod}, Path(path), []byte{flags}, concat(body...))
}

// Return ends a method with a value.
func Return(value []byte) []byte { return concat([]byte{opReturn}, value) }

// Store assigns source to target, a name, a local or an argument.
func Store(source, target []byte) []byte { return concat([]byte{opStore}, source, target) }

// Arg is the method argument n, 0 to 6.
func Arg(n int) []byte {
	if n < 0 || n > 6 {
		panic(fmt.Sprintf("aml: argument %d", n))
	}
	return []byte{byte(opArg0 + n)}
}

// Local is the method's local variable n, 0 to 7.
func Local(n int) []byte {
	if n < 0 || n > 7 {
		panic(fmt.Sprintf("aml: local %d", n))
	}
	return []byte{byte(opLocal0 + n)}
}

// Package is a list of up to 255 objects.
func Package(elements ...[]byte) []byte {
	if len(elements) > math.MaxUint8 {
		panic(fmt.Sprintf("aml: package of %d elements", len(elements)))
	}
	return pack([]byte{opPackage}, []byte{byte(len(elements))}, concat(elements...))
}

// Buffer is a buffer that holds b.
func Buffer(b []byte) []byte {
	return pack([]byte{opBuffer}, Integer(uint64(len(b))), b)
}

// pack puts the length of the parts between the opcode and them.
func pack(op []byte, parts ...[]byte) []byte {
	body := concat(parts...)
	return concat(op, PkgLength(len(body)), body)
}

func concat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
