package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// A SetupHeader is the part of a bzImage's setup header that matters here
// (Documentation/arch/x86/boot.rst). Sizes and addresses are in bytes.
type SetupHeader struct {
	Version       uint16 // 0x020F is 2.15
	KernelVersion string // as uname -r gives it, with builder and date; may be empty
	SetupSize     int64  // of the real-mode part, at the start of the file
	LoadFlags     uint8
	XLoadFlags    uint16
	InitrdAddrMax uint32 // last byte that an initrd may occupy
	Alignment     uint32
	Relocatable   bool
	CmdlineSize   uint32 // without the terminating zero
	PayloadOffset uint32 // in the protected-mode part
	PayloadLength uint32
	PrefAddress   uint64
	InitSize      uint32 // memory that the kernel needs from its load address on
	versionAt     int64  // of KernelVersion in the file; 0 means none
	raw           []byte // from raw offset 0x1F1 to the end of the header
}

// Offsets in the zero page and in the first sectors of a bzImage, which are
// the same from setupStart on.
const (
	offACPIRSDP    = 0x070
	offExtRamdisk  = 0x0C0
	offExtRamSize  = 0x0C4
	offExtCmdline  = 0x0C8
	offE820Count   = 0x1E8
	setupStart     = 0x1F1
	offBootFlag    = 0x1FE
	offJump        = 0x200
	offMagic       = 0x202
	offVersion     = 0x206
	offKernelVer   = 0x20E
	offLoaderType  = 0x210
	offLoadFlags   = 0x211
	offCode32      = 0x214
	offRamdisk     = 0x218
	offRamdiskSize = 0x21C
	offHeapEnd     = 0x224
	offCmdline     = 0x228
	offInitrdMax   = 0x22C
	offAlignment   = 0x230
	offRelocatable = 0x234
	offMinAlign    = 0x235
	offXLoadFlags  = 0x236
	offCmdlineSize = 0x238
	offSubarch     = 0x23C
	offPayload     = 0x248
	offPayloadLen  = 0x24C
	offSetupData   = 0x250
	offPrefAddress = 0x258
	offInitSize    = 0x260
	offE820Table   = 0x2D0
	setupEndMax    = 0x290 // the zero page has another use from here on
)

// Load flags.
const (
	loadedHigh   = 1 << 0
	kaslrFlag    = 1 << 1
	keepSegments = 1 << 6
	canUseHeap   = 1 << 7

	xlfKernel64 = 1 << 0 // has the 64-bit entry at 0x200
	xlfAbove4G  = 1 << 1 // initrd and the rest may lie anywhere
)

// defaultCmdline is the longest command line of a kernel whose setup header
// is not known: COMMAND_LINE_SIZE of x86 less the terminating zero.
const defaultCmdline = 2047

// minProtocol is the oldest boot protocol taken: 2.06 (Linux 2.6.22) brought
// the command line size.
const minProtocol = 0x0206

func parseSetup(head []byte, size int64) (*SetupHeader, error) {
	if len(head) < offVersion+2 {
		return nil, errors.New("is cut short within the setup header")
	}
	version := le.Uint16(head[offVersion:])
	if version < minProtocol {
		return nil, fmt.Errorf("uses boot protocol %d.%02d; 2.06 (Linux 2.6.22) or later is needed", version>>8, version&0xFF)
	}
	end := offMagic + int(head[offJump+1])
	if end > setupEndMax || end < offCmdlineSize+4 {
		return nil, fmt.Errorf("has a damaged setup header: it would end at %#x", end)
	}
	if len(head) < end {
		return nil, errors.New("is cut short within the setup header")
	}
	h := &SetupHeader{
		Version:   version,
		SetupSize: (int64(head[setupStart]) + 1) * 512,
		raw:       bytes.Clone(head[setupStart:end]),
	}
	if head[setupStart] == 0 {
		h.SetupSize = 5 * 512 // 0 means 4 sectors after the first
	}
	// Fields that an older header does not have read as 0.
	field := make([]byte, setupEndMax)
	copy(field[setupStart:], h.raw)
	h.LoadFlags = field[offLoadFlags]
	h.InitrdAddrMax = le.Uint32(field[offInitrdMax:])
	h.Alignment = le.Uint32(field[offAlignment:])
	h.Relocatable = field[offRelocatable] != 0
	h.CmdlineSize = le.Uint32(field[offCmdlineSize:])
	if version >= 0x0208 {
		h.PayloadOffset = le.Uint32(field[offPayload:])
		h.PayloadLength = le.Uint32(field[offPayloadLen:])
	}
	if version >= 0x020A {
		h.PrefAddress = le.Uint64(field[offPrefAddress:])
		h.InitSize = le.Uint32(field[offInitSize:])
	}
	if version >= 0x020C {
		h.XLoadFlags = le.Uint16(field[offXLoadFlags:])
	}
	if h.LoadFlags&loadedHigh == 0 {
		return nil, errors.New("is a zImage, which loads below 1 MiB; build a bzImage")
	}
	if h.SetupSize >= size {
		return nil, fmt.Errorf("is cut short: %d bytes, of which %d are the real-mode part", size, h.SetupSize)
	}
	if at := int64(le.Uint16(field[offKernelVer:])); at != 0 {
		h.versionAt = at + 0x200
	}
	return h, nil
}

// readVersion reads the version string, which is for people only: a damaged
// one is left empty.
func (h *SetupHeader) readVersion(r io.ReaderAt) {
	if h.versionAt == 0 || h.versionAt >= h.SetupSize {
		return
	}
	b := make([]byte, min(256, h.SetupSize-h.versionAt))
	if n, _ := r.ReadAt(b, h.versionAt); n < len(b) {
		return
	}
	if i := bytes.IndexByte(b, 0); i >= 0 && printable(b[:i]) {
		h.KernelVersion = string(b[:i])
	}
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// payload returns where in the file the compressed kernel lies.
func (h *SetupHeader) payload(size int64) (off, n int64, err error) {
	if h.PayloadLength == 0 {
		return 0, 0, fmt.Errorf("boot protocol %d.%02d does not say where the compressed kernel is; use --boot=bzimage",
			h.Version>>8, h.Version&0xFF)
	}
	off, n = h.SetupSize+int64(h.PayloadOffset), int64(h.PayloadLength)
	if off+n > size {
		return 0, 0, fmt.Errorf("is cut short: %d bytes, but the compressed kernel ends at %d", size, off+n)
	}
	return off, n, nil
}

// cmdlineLimit is the longest command line, in bytes.
func (h *SetupHeader) cmdlineLimit() int {
	if h == nil || h.CmdlineSize == 0 {
		return defaultCmdline
	}
	return int(min(h.CmdlineSize, cmdlineRoom-1))
}

// initrdLimit is the address after the last byte that an initrd may occupy.
func (h *SetupHeader) initrdLimit() uint64 {
	if h == nil || h.InitrdAddrMax == 0 || h.XLoadFlags&xlfAbove4G != 0 {
		return 1 << 32
	}
	return uint64(h.InitrdAddrMax) + 1
}
