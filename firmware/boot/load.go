package boot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hvpost/hvpost/guest"
)

// Params is what a kernel is given besides its image.
type Params struct {
	Map     []Entry   // from Layout
	Cmdline string    // without a terminating zero
	Initrd  []Part    // joined to one initrd; for Multiboot one module each
	RSDP    guest.GPA // ACPI root pointer; 0 if there is none

	// Setup is the setup header of the bzImage that a vmlinux was unpacked
	// from. Without it, Linux64 makes up a header of protocol 2.15.
	Setup *SetupHeader
}

// A Part is a piece of an initrd.
type Part struct {
	Name string // of the file, for errors and as multiboot's module string
	R    io.ReaderAt
	Size int64 // bytes

	// Load, if set, puts the Size bytes into guest memory at a itself, and R
	// is not used.
	Load func(mem *guest.Memory, a guest.GPA) error
}

// BytesPart is a part that is in memory.
func BytesPart(name string, b []byte) Part {
	return Part{Name: name, R: bytes.NewReader(b), Size: int64(len(b))}
}

// maxInitrdParts bounds the multiboot module list; an initrd joined of more
// pieces is surely a mistake.
const maxInitrdParts = 64

// Check reports what Load would find wrong with the image, the parameters and
// their fit into the memory of Map, before there is guest memory. It reads no
// more than Open did and leaves Part.R and Part.Load alone.
func (im *Image) Check(proto Protocol, p Params) error {
	_, err := im.Load(nil, proto, p)
	return err
}

// Load puts the image into guest memory for the given protocol and returns
// the state in which the first processor enters it. Map must be the map that
// belongs to mem. Without memory everything is worked out and nothing stored.
func (im *Image) Load(mem *guest.Memory, proto Protocol, p Params) (*Loaded, error) {
	if len(p.Initrd) > maxInitrdParts {
		return nil, fmt.Errorf("initrd of %d parts: at most %d are taken", len(p.Initrd), maxInitrdParts)
	}
	if bytes.IndexByte([]byte(p.Cmdline), 0) >= 0 {
		return nil, errors.New("kernel command line holds a zero byte")
	}
	if len(p.Map) == 0 {
		return nil, errors.New("guest memory map is empty")
	}
	var l *Loaded
	var err error
	switch proto {
	case Linux64:
		l, err = im.loadLinux64(mem, p)
	case LinuxBzImage:
		l, err = im.loadBzImage(mem, p)
	case PVH:
		l, err = im.loadPVH(mem, p)
	case Multiboot:
		l, err = im.loadMultiboot(mem, p)
	default:
		panic(fmt.Sprintf("boot: protocol %d", int(proto)))
	}
	if err != nil {
		return nil, err
	}
	if err := writeTables(mem, l.State); err != nil {
		return nil, err
	}
	return l, nil
}

// loadSegments places segments and returns the memory from the first to the
// last of them.
func (im *Image) loadSegments(mem *guest.Memory, m []Entry, segments []segment) (Entry, error) {
	first, last := segments[0], segments[len(segments)-1]
	for _, s := range segments {
		if err := im.checkPlace(m, s.paddr, s.memSize); err != nil {
			return Entry{}, err
		}
	}
	for _, s := range segments {
		if mem == nil {
			break
		}
		a := guest.GPA(s.paddr)
		if err := copyIn(mem, a, im.r, s.off, s.fileSize, im.Name); err != nil {
			return Entry{}, err
		}
		if err := zero(mem, a+guest.GPA(s.fileSize), s.memSize-s.fileSize); err != nil {
			return Entry{}, fmt.Errorf("%s: %w", im.Name, err)
		}
	}
	return Entry{guest.GPA(first.paddr), last.end() - first.paddr, RAM}, nil
}

// checkPlace reports a kernel that does not lie in usable memory.
func (im *Image) checkPlace(m []Entry, addr, size uint64) error {
	if addr < uint64(highMemory) {
		return fmt.Errorf("%s: loads at %#x; the memory below 1 MiB is taken", im.Name, addr)
	}
	if usable(m, guest.GPA(addr), size) {
		return nil
	}
	end := addr + size
	top := slices.MaxFunc(m, func(a, b Entry) int { return cmp.Compare(a.End(), b.End()) })
	for _, e := range m {
		if e.Type != RAM && end <= uint64(top.End()) && addr < uint64(e.End()) && end > uint64(e.Base) {
			return fmt.Errorf("%s: loads at %#x-%#x, over the reserved memory at %v", im.Name, addr, end, e.Base)
		}
	}
	return fmt.Errorf("%s: needs memory up to %d MiB, which the guest's %d MiB do not cover; raise -m", im.Name, mib(end), mib(ramBytes(m)))
}

// copyIn copies n bytes of r from off on to guest memory: straight from a
// file where r is one.
func copyIn(mem *guest.Memory, a guest.GPA, r io.ReaderAt, off int64, n uint64, name string) error {
	if mem == nil {
		return nil
	}
	if f, ok := r.(*os.File); ok {
		if err := mem.Load(a, f, off, n); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		b := buf[:min(n, uint64(len(buf)))]
		if k, err := r.ReadAt(b, off); k < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				return fmt.Errorf("%s: is cut short: ends at byte %d", name, off+int64(k))
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := mem.WriteAt(b, a); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		a, off, n = a+guest.GPA(len(b)), off+int64(len(b)), n-uint64(len(b))
	}
	return nil
}

// store writes what the loader made up.
func store(mem *guest.Memory, b []byte, a guest.GPA) error {
	if mem == nil {
		return nil
	}
	return mem.WriteAt(b, a)
}

// zero clears n bytes at a. Nothing to clear is fine even where RAM ends.
func zero(mem *guest.Memory, a guest.GPA, n uint64) error {
	if n == 0 {
		return nil
	}
	return mem.Zero(a, n)
}

// findHigh returns the highest page-aligned place for size bytes in RAM below
// limit and not in taken.
func findHigh(m []Entry, size, limit uint64, taken Entry) (guest.GPA, bool) {
	var best guest.GPA
	var found bool
	try := func(base, end uint64) {
		end = min(end, limit) &^ (guest.PageSize - 1)
		if end < base || end-base < size {
			return
		}
		a := guest.GPA((end - size) &^ (guest.PageSize - 1))
		if uint64(a) >= base && (!found || a > best) {
			best, found = a, true
		}
	}
	for _, e := range m {
		if e.Type != RAM || e.End() <= highMemory {
			continue
		}
		base, end := uint64(e.Base), uint64(e.End())
		kernel, kernelEnd := uint64(taken.Base), uint64(taken.End())
		if kernel >= end || kernelEnd <= base {
			try(base, end)
			continue
		}
		try(kernelEnd, end)
		try(base, kernel)
	}
	return best, found
}

// pad4 rounds up to the 4 bytes that newc archives are padded to.
func pad4(n uint64) uint64 { return (n + 3) &^ 3 }

// loadInitrd joins the parts of an initrd as high as it may lie: each part is
// padded with zeros to 4 bytes, as the kernel wants archives that follow each
// other (Documentation/driver-api/early-userspace/buffer-format.rst).
func loadInitrd(mem *guest.Memory, p Params, limit uint64, kernel Entry) (Entry, error) {
	size, err := initrdSize(p.Initrd)
	if err != nil || size == 0 {
		return Entry{}, err
	}
	base, ok := findHigh(p.Map, size, limit, kernel)
	if !ok || base < highMemory {
		return Entry{}, initrdTooLarge(size, p)
	}
	a := base
	for _, part := range p.Initrd {
		if err := loadPart(mem, a, part); err != nil {
			return Entry{}, err
		}
		a += guest.GPA(pad4(uint64(part.Size)))
	}
	return Entry{base, size, RAM}, nil
}

// initrdSize adds up the padded parts.
func initrdSize(parts []Part) (uint64, error) {
	var size uint64
	for _, part := range parts {
		if part.Size < 0 || part.Size > maxRAM {
			return 0, fmt.Errorf("initrd %s: has a size of %d bytes", part.Name, part.Size)
		}
		size += pad4(uint64(part.Size))
	}
	return size, nil
}

func initrdTooLarge(size uint64, p Params) error {
	largest := slices.MaxFunc(p.Initrd, func(a, b Part) int { return cmp.Compare(a.Size, b.Size) })
	return fmt.Errorf("initrd of %d MiB (%d of them %s) does not fit into %d MiB of guest memory; raise -m",
		mib(size), mib(uint64(largest.Size)), largest.Name, mib(ramBytes(p.Map)))
}

func loadPart(mem *guest.Memory, a guest.GPA, part Part) error {
	if mem == nil {
		return nil
	}
	n := uint64(part.Size)
	if part.Load != nil {
		if err := part.Load(mem, a); err != nil {
			return fmt.Errorf("initrd %s: %w", part.Name, err)
		}
	} else if err := copyIn(mem, a, part.R, 0, n, "initrd "+part.Name); err != nil {
		return err
	}
	if err := zero(mem, a+guest.GPA(n), pad4(n)-n); err != nil {
		return fmt.Errorf("initrd %s: %w", part.Name, err)
	}
	return nil
}

// writeCmdline puts the command line with its terminating zero into place.
func writeCmdline(mem *guest.Memory, cmdline string, limit int) error {
	if len(cmdline) > limit {
		return fmt.Errorf("kernel command line of %d bytes: this kernel takes at most %d", len(cmdline), limit)
	}
	if err := store(mem, append([]byte(cmdline), 0), cmdlineBase); err != nil {
		return fmt.Errorf("kernel command line: %w", err)
	}
	return nil
}
