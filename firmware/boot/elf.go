package boot

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hvpost/hvpost/guest"
)

// Bounds on what an ELF file can make the parser do. Kernels have five or so
// segments and a few hundred bytes of notes.
const (
	maxSegments = 64
	maxNotes    = 64 << 10 // bytes of one note segment
)

// A segment is a PT_LOAD entry.
type segment struct {
	off      int64 // in the file
	paddr    uint64
	vaddr    uint64
	fileSize uint64
	memSize  uint64
}

func (s segment) end() uint64 { return s.paddr + s.memSize }

type elfFile struct {
	class64  bool
	entry    uint64
	segments []segment // by paddr, not overlapping, none empty
	linux    bool      // a note says that it is Linux
	hasPVH   bool
	pvhEntry uint32
}

// Machine numbers of kernels that people have lying around.
var machines = map[uint16]string{
	2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "s390", 40: "32-bit ARM",
	43: "64-bit SPARC", 50: "Itanium", 183: "arm64", 243: "RISC-V", 258: "LoongArch",
}

// parseELF reads the headers of an ELF file of either class (System V ABI,
// "ELF Header", "Program Header"). Numbers in the file are untrusted: every
// one is checked against the file's size before use.
func parseELF(im *Image, head []byte) (*elfFile, error) {
	const (
		x86, x8664           = 3, 62
		typeRel              = 1
		typeExec, typeDyn    = 2, 3
		typeCore             = 4
		ptLoad, ptNote       = 1, 4
		header32, header64   = 52, 64
		phEntry32, phEntry64 = 32, 56
		classOffset          = 4
		dataOffset           = 5
		bigEndian            = 2
	)
	if len(head) < header32 {
		return nil, errors.New("is cut short within the ELF header")
	}
	class := head[classOffset]
	if class != 1 && class != 2 {
		return nil, fmt.Errorf("has a damaged ELF header: class %d", class)
	}
	e := &elfFile{class64: class == 2}
	if head[dataOffset] == bigEndian {
		return nil, errors.New("is a big-endian ELF file; an x86-64 kernel is needed")
	}
	if machine := le.Uint16(head[18:]); machine != x8664 && (machine != x86 || e.class64) {
		name, ok := machines[machine]
		if !ok {
			name = fmt.Sprintf("machine-%d", machine)
		}
		return nil, fmt.Errorf("is an ELF file for %s; an x86-64 kernel is needed", name)
	}
	switch typ := le.Uint16(head[16:]); typ {
	case typeExec, typeDyn:
	case typeRel:
		return nil, errors.New("is an object file or kernel module, not a kernel")
	case typeCore:
		return nil, errors.New("is a core dump, not a kernel")
	default:
		return nil, fmt.Errorf("is an ELF file of type %d, not a kernel", typ)
	}
	var (
		phOff            uint64
		entrySize, count uint16
		entryWant        = uint16(phEntry32)
	)
	if e.class64 {
		if len(head) < header64 {
			return nil, errors.New("is cut short within the ELF header")
		}
		e.entry, phOff = le.Uint64(head[24:]), le.Uint64(head[32:])
		entrySize, count = le.Uint16(head[54:]), le.Uint16(head[56:])
		entryWant = phEntry64
	} else {
		e.entry, phOff = uint64(le.Uint32(head[24:])), uint64(le.Uint32(head[28:]))
		entrySize, count = le.Uint16(head[42:]), le.Uint16(head[44:])
	}
	switch {
	case count == 0:
		return nil, errors.New("is an ELF file without program headers, not a kernel")
	case count > maxSegments:
		return nil, fmt.Errorf("has %d ELF program headers; at most %d are taken", count, maxSegments)
	case entrySize != entryWant:
		return nil, fmt.Errorf("has a damaged ELF header: program headers of %d bytes", entrySize)
	case phOff > uint64(im.size):
		return nil, errors.New("is cut short: the ELF program headers lie past its end")
	}
	table := make([]byte, int(count)*int(entrySize))
	if err := readAt(im, table, phOff); err != nil {
		return nil, err
	}
	for i := range int(count) {
		p := table[i*int(entrySize):]
		var s segment
		var off uint64
		if e.class64 {
			off, s.vaddr, s.paddr = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
			s.fileSize, s.memSize = le.Uint64(p[32:]), le.Uint64(p[40:])
		} else {
			off, s.vaddr, s.paddr = uint64(le.Uint32(p[4:])), uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[12:]))
			s.fileSize, s.memSize = uint64(le.Uint32(p[16:])), uint64(le.Uint32(p[20:]))
		}
		typ := le.Uint32(p)
		if typ != ptLoad && typ != ptNote {
			continue
		}
		if off > uint64(im.size) || s.fileSize > uint64(im.size)-off {
			return nil, fmt.Errorf("is cut short: ELF segment %d ends past its %d bytes", i, im.size)
		}
		s.off = int64(off)
		if typ == ptNote {
			if err := e.notes(im, s); err != nil {
				return nil, err
			}
			continue
		}
		if s.memSize == 0 {
			continue
		}
		if s.fileSize > s.memSize {
			return nil, fmt.Errorf("has a damaged ELF segment %d: %d bytes for %d of memory", i, s.fileSize, s.memSize)
		}
		if s.paddr+s.memSize < s.paddr {
			return nil, fmt.Errorf("has a damaged ELF segment %d: %#x bytes at %#x", i, s.memSize, s.paddr)
		}
		e.segments = append(e.segments, s)
	}
	if len(e.segments) == 0 {
		return nil, errors.New("is an ELF file with nothing to load, not a kernel")
	}
	slices.SortFunc(e.segments, func(a, b segment) int {
		if a.paddr < b.paddr {
			return -1
		}
		if a.paddr > b.paddr {
			return 1
		}
		return 0
	})
	for i := 1; i < len(e.segments); i++ {
		if e.segments[i-1].end() > e.segments[i].paddr {
			return nil, fmt.Errorf("has ELF segments that overlap at %#x", e.segments[i].paddr)
		}
	}
	return e, nil
}

// readAt is Image.read without the file's name, which the caller adds.
func readAt(im *Image, p []byte, off uint64) error {
	if off > uint64(im.size) || uint64(len(p)) > uint64(im.size)-off {
		return fmt.Errorf("is cut short: %d bytes are missing at %d", len(p), off)
	}
	if n, err := im.r.ReadAt(p, int64(off)); n < len(p) {
		return fmt.Errorf("cannot be read at byte %d: %w", off+uint64(n), err)
	}
	return nil
}

// notes looks for the PVH entry point (Xen's public/elfnote.h,
// XEN_ELFNOTE_PHYS32_ENTRY) and for Linux's own notes.
func (e *elfFile) notes(im *Image, s segment) error {
	const physEntry = 18
	b := make([]byte, min(s.fileSize, maxNotes))
	if err := readAt(im, b, uint64(s.off)); err != nil {
		return err
	}
	for len(b) >= 12 {
		nameSize, descSize, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		desc := 12 + (nameSize+3)&^3
		next := desc + (descSize+3)&^3
		if desc+descSize > uint64(len(b)) {
			return nil // damaged notes are as good as none
		}
		name := string(b[12 : 12+nameSize])
		switch value := b[desc : desc+descSize]; {
		case name == "Linux\x00":
			e.linux = true
		case name == "Xen\x00" && typ == physEntry && descSize >= 4:
			// Both classes use 4 or 8 bytes; the entry lies below 4 GiB.
			if descSize < 8 || le.Uint32(value[4:]) == 0 {
				e.hasPVH, e.pvhEntry = true, le.Uint32(value)
			}
		}
		b = b[min(next, uint64(len(b))):]
	}
	return nil
}

// physicalEntry returns the entry point as a physical address. A vmlinux
// names it so already; other kernels may give the virtual one.
func (e *elfFile) physicalEntry() (guest.GPA, error) {
	for _, s := range e.segments {
		if e.entry >= s.paddr && e.entry < s.end() {
			return guest.GPA(e.entry), nil
		}
	}
	for _, s := range e.segments {
		if off := e.entry - s.vaddr; e.entry >= s.vaddr && off < s.memSize {
			return guest.GPA(s.paddr + off), nil
		}
	}
	return 0, fmt.Errorf("has its entry point %#x outside all ELF segments", e.entry)
}
