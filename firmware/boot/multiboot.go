package boot

import (
	"errors"
	"fmt"
)

// A multibootHeader is the header of the Multiboot Specification 0.6.96,
// section 3.1.
type multibootHeader struct {
	flags  uint32
	kludge bool // load addresses follow: bit 16

	headerAddr, loadAddr, loadEnd, bssEnd, entry uint32
	offset                                       uint32 // of the header in the file
}

const (
	multibootMagic     = 0x1BADB002
	multibootLoadMagic = 0x2BADB002 // EAX at the entry

	mbPageAlign = 1 << 0
	mbMemory    = 1 << 1
	mbVideo     = 1 << 2
	mbKludge    = 1 << 16
	mbRequired  = 0xFFFF // bits that a loader must know or refuse
)

// findMultiboot looks for a multiboot header in the first 8192 bytes. It
// returns nil if there is none.
func findMultiboot(head []byte) (*multibootHeader, error) {
	for off := 0; off+12 <= len(head); off += 4 {
		b := head[off:]
		flags := le.Uint32(b[4:])
		if le.Uint32(b) != multibootMagic || multibootMagic+flags+le.Uint32(b[8:]) != 0 {
			continue
		}
		h := &multibootHeader{flags: flags, offset: uint32(off)}
		if flags&mbVideo != 0 {
			return nil, errors.New("is a multiboot kernel that requires a video mode; there is no display to set one on")
		}
		if unknown := flags & mbRequired &^ (mbPageAlign | mbMemory); unknown != 0 {
			return nil, fmt.Errorf("is a multiboot kernel that requires unknown features %#x", unknown)
		}
		if flags&mbKludge == 0 {
			return h, nil
		}
		if len(b) < 32 {
			return nil, errors.New("is cut short within the multiboot header")
		}
		h.kludge = true
		h.headerAddr, h.loadAddr, h.loadEnd = le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:])
		h.bssEnd, h.entry = le.Uint32(b[24:]), le.Uint32(b[28:])
		return h, nil
	}
	return nil, nil
}

// segment returns what a header with load addresses says to load from a file
// of size bytes.
func (h *multibootHeader) segment(size int64) (segment, error) {
	back := int64(h.headerAddr) - int64(h.loadAddr)
	off := int64(h.offset) - back
	if back < 0 || off < 0 {
		return segment{}, fmt.Errorf("has a damaged multiboot header: loads at %#x from byte %d", h.loadAddr, off)
	}
	n := size - off
	if h.loadEnd != 0 {
		n = int64(h.loadEnd) - int64(h.loadAddr)
	}
	if n <= 0 || n > size-off {
		return segment{}, fmt.Errorf("is cut short: multiboot header asks for %d bytes at %d of %d", n, off, size)
	}
	s := segment{off: off, paddr: uint64(h.loadAddr), vaddr: uint64(h.loadAddr), fileSize: uint64(n), memSize: uint64(n)}
	if h.bssEnd != 0 {
		if uint64(h.bssEnd) < s.end() {
			return segment{}, fmt.Errorf("has a damaged multiboot header: bss ends at %#x, data at %#x", h.bssEnd, s.end())
		}
		s.memSize = uint64(h.bssEnd) - s.paddr
	}
	if e := uint64(h.entry); e < s.paddr || e >= s.end() {
		return segment{}, fmt.Errorf("has a damaged multiboot header: entry %#x outside %#x-%#x", h.entry, s.paddr, s.end())
	}
	return s, nil
}
