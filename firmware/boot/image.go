package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// A Kind is what a kernel file is.
type Kind int

const (
	BzImage    Kind = iota // Linux image that unpacks itself
	ELF64                  // x86-64 ELF
	ELF32                  // i386 ELF
	Flat                   // no ELF, but a multiboot header with load addresses
	Compressed             // a compressed file; see Unpack
)

func (k Kind) String() string {
	return [...]string{"bzImage", "64-bit ELF", "32-bit ELF", "multiboot image", "compressed file"}[k]
}

// A Protocol is a way of entering a kernel.
type Protocol int

const (
	Linux64      Protocol = iota // vmlinux at its 64-bit entry
	LinuxBzImage                 // bzImage; the guest unpacks it
	PVH                          // Xen's PVH entry
	Multiboot                    // multiboot 1
)

func (p Protocol) String() string {
	return [...]string{"linux64", "bzimage", "pvh", "multiboot"}[p]
}

// An Image is a kernel file whose headers have been read and checked.
type Image struct {
	Name string
	Kind Kind

	// Setup is the setup header of a bzImage.
	Setup *SetupHeader
	// PVHEntry is the entry point that the PVH note of an ELF names.
	PVHEntry uint32
	HasPVH   bool

	r         io.ReaderAt
	size      int64
	elf       *elfFile
	multiboot *multibootHeader
	packing   packing // of a Compressed file
}

// headSize is how much of a file is read to tell what it is: multiboot
// headers lie within the first 8192 bytes.
const headSize = 8192

// Open reads the headers of a kernel file. The file must stay open while the
// image is in use.
func Open(f *os.File) (*Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	switch {
	case st.IsDir():
		return nil, fmt.Errorf("%s: is a directory, not a kernel", f.Name())
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s: is not a regular file; copy the kernel into one", f.Name())
	}
	return New(f, st.Size(), f.Name())
}

// New reads the headers of a kernel of size bytes. The name is used in
// errors.
func New(r io.ReaderAt, size int64, name string) (*Image, error) {
	if size <= 0 {
		return nil, fmt.Errorf("%s: is empty", name)
	}
	im := &Image{Name: name, r: r, size: size}
	head := make([]byte, min(size, headSize))
	if err := im.read(head, 0); err != nil {
		return nil, err
	}
	if err := im.detect(head); err != nil {
		return nil, err
	}
	return im, nil
}

func (im *Image) detect(head []byte) error {
	if err := foreign(head); err != nil {
		return fmt.Errorf("%s: %w", im.Name, err)
	}
	has := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case has(0x202, "HdrS"):
		im.Kind = BzImage
		var err error
		im.Setup, err = parseSetup(head, im.size)
		if err != nil {
			return fmt.Errorf("%s: %w", im.Name, err)
		}
		if im.Setup.PayloadLength != 0 {
			if _, _, err := im.Setup.payload(im.size); err != nil {
				return fmt.Errorf("%s: %w", im.Name, err)
			}
		}
		im.Setup.readVersion(im.r)
		return nil
	case has(0, "\x7fELF"):
		var err error
		im.elf, err = parseELF(im, head)
		if err != nil {
			return fmt.Errorf("%s: %w", im.Name, err)
		}
		im.Kind = ELF32
		if im.elf.class64 {
			im.Kind = ELF64
		}
		im.PVHEntry, im.HasPVH = im.elf.pvhEntry, im.elf.hasPVH
		// A broken multiboot header in an ELF that has another way in is
		// not an error: the magic may be there by chance.
		im.multiboot, err = findMultiboot(head)
		if err != nil && !im.HasPVH && im.Kind == ELF32 {
			return fmt.Errorf("%s: %w", im.Name, err)
		}
		return nil
	}
	if p := packingOf(head); p != unpacked {
		im.Kind, im.packing = Compressed, p
		return nil
	}
	mb, err := findMultiboot(head)
	if err != nil {
		return fmt.Errorf("%s: %w", im.Name, err)
	}
	if mb != nil {
		if !mb.kludge {
			return fmt.Errorf("%s: has a multiboot header, but is no ELF and names no load addresses", im.Name)
		}
		im.Kind, im.multiboot = Flat, mb
		return nil
	}
	if len(head) < 0x268 {
		return fmt.Errorf("%s: is %d bytes long: too short for a kernel", im.Name, im.size)
	}
	return fmt.Errorf("%s: is not a kernel: no bzImage, ELF or multiboot header", im.Name)
}

// foreign recognises files that are often given by mistake.
func foreign(head []byte) error {
	has := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case has(56, "ARM\x64"):
		return errors.New("is an arm64 kernel; an x86-64 one is needed")
	case has(56, "RSC\x05"):
		return errors.New("is a RISC-V kernel; an x86-64 one is needed")
	case has(0x24, "\x18\x28\x6f\x01"):
		return errors.New("is a 32-bit ARM kernel; an x86-64 one is needed")
	case has(0, "MZ") && has(4, "zimg"):
		return errors.New("is an EFI zboot kernel, which x86 does not have; an x86-64 bzImage is needed")
	case has(0, "!<arch>\ndebian-binary"):
		return errors.New("is a Debian package; give the kernel inside it, boot/vmlinuz-*")
	case has(0, "\xed\xab\xee\xdb"):
		return errors.New("is an RPM package; give the kernel inside it")
	case has(0, "070701"), has(0, "070702"):
		return errors.New("is a cpio archive, an initrd perhaps, not a kernel")
	case has(0, "MZ") && !has(0x202, "HdrS"):
		return errors.New("is an EFI or Windows program without a Linux setup header")
	case has(0, "#!"):
		return errors.New("is a script, not a kernel")
	}
	return nil
}

// read fills p from the file at off.
func (im *Image) read(p []byte, off int64) error {
	n, err := im.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: is cut short: ends at byte %d", im.Name, off+int64(n))
	}
	return fmt.Errorf("%s: %w", im.Name, err)
}

// Default returns the protocol that suits the image best. A bzImage's is
// LinuxBzImage: the quicker way is to Unpack it and load the result.
func (im *Image) Default() (Protocol, error) {
	switch {
	case im.Kind == BzImage:
		return LinuxBzImage, nil
	case im.multiboot != nil:
		return Multiboot, nil
	case im.Kind == ELF64 && (im.elf.linux || !im.HasPVH):
		return Linux64, nil
	case im.HasPVH:
		return PVH, nil
	case im.Kind == Compressed:
		return 0, fmt.Errorf("%s: is compressed (%v) and must be unpacked first", im.Name, im.packing)
	}
	return 0, fmt.Errorf("%s: is a %v with neither a multiboot header nor a PVH note: no way to enter it", im.Name, im.Kind)
}

// isELF reports whether b starts like an ELF file.
func isELF(b []byte) bool { return bytes.HasPrefix(b, []byte("\x7fELF")) }
