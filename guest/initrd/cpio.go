package initrd

import (
	"fmt"
	"io"
	"os"

	"github.com/hvpost/hvpost/guest"
	"golang.org/x/sys/unix"
)

// The newc format: a header of a magic number and 13 fields of eight
// hexadecimal digits, the name with its NUL, padding to 4, the body, padding
// to 4. An entry called TRAILER!!! ends the archive.
const (
	newcMagic   = "070701"
	newcHeader  = 6 + 13*8
	newcTrailer = "TRAILER!!!"
	newcAlign   = 4

	// imageAlign pads the whole: cpio(1) reads blocks of this size, and the
	// kernel wants a second archive behind this one aligned to 4.
	imageAlign = 512
)

// A Part is a run of bytes of an image: Data, or the first Size bytes of the
// host file at Path.
type Part struct {
	Off  int64 // in the image
	Size int64
	Data []byte // nil if the bytes are a file's
	Path string
}

// An Image is a finished archive: its parts, in order and without gaps. It
// stays valid as long as the host files keep their size.
type Image struct {
	Size  int64
	Parts []Part
}

// Build lays out the image. The Builder can be used further.
func (b *Builder) Build() (*Image, error) {
	im := &Image{}
	links := b.hardLinks()
	var ino uint32
	err := b.walk(func(p string, n *node) error {
		ino++
		h := header{ino: ino, mode: n.mode, nlink: 1, mtime: uint32(n.mtime), rdev: n.rdev, name: p}
		size := n.size()
		if n.isDir() {
			h.nlink = 2
		}
		if g := links[n]; g != nil {
			// One inode; the body comes with the last name, as cpio(1) has it.
			if g.ino == 0 {
				g.ino = ino
			}
			h.ino, h.nlink = g.ino, g.names
			if g.left--; g.left > 0 {
				size = 0
			}
		}
		h.size = uint32(size)
		im.bytes(h.encode())
		switch {
		case size == 0:
		case n.file != nil:
			im.file(n.file)
		case n.isLink():
			im.bytes([]byte(n.target))
		default:
			im.bytes(n.data)
		}
		im.pad(newcAlign)
		if im.Size > maxImageSize {
			return fmt.Errorf("initial RAM file system over %d GiB at %s: pass large files as a disk", maxImageSize>>30, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	im.bytes((&header{nlink: 1, name: newcTrailer}).encode())
	im.pad(imageAlign)
	return im, nil
}

// linkGroup is a host file with several names in the image.
type linkGroup struct {
	ino         uint32
	names, left uint32
}

// hardLinks finds the files that are hard links of each other on the host and
// keeps them so: a directory of a hundred names for one program stays one
// program.
func (b *Builder) hardLinks() map[*node]*linkGroup {
	byID := map[hostID]*linkGroup{}
	links := map[*node]*linkGroup{}
	b.walk(func(_ string, n *node) error {
		if n.file == nil || !n.file.hard || n.file.size == 0 {
			return nil
		}
		g := byID[n.file.id]
		if g == nil {
			g = &linkGroup{}
			byID[n.file.id] = g
		}
		g.names++
		g.left++
		links[n] = g
		return nil
	})
	for n, g := range links {
		if g.names == 1 {
			delete(links, n)
		}
	}
	return links
}

type header struct {
	ino, mode, nlink, mtime, size uint32
	rdev                          [2]uint32
	name                          string
}

// encode returns the header, the name and the padding after it.
func (h *header) encode() []byte {
	b := make([]byte, 0, newcHeader+len(h.name)+1+newcAlign)
	b = append(b, newcMagic...)
	for _, v := range [13]uint32{
		h.ino, h.mode, 0, 0, h.nlink, h.mtime, h.size, // uid and gid are root's
		0, 0, h.rdev[0], h.rdev[1], uint32(len(h.name) + 1), 0, // device of the file, checksum: unused
	} {
		b = fmt.Appendf(b, "%08x", v)
	}
	b = append(b, h.name...)
	b = append(b, 0)
	for len(b)%newcAlign != 0 { // the header starts aligned
		b = append(b, 0)
	}
	return b
}

// copyBelow is the size up to which bytes of neighbouring parts are joined:
// fewer and larger writes for headers and small files.
const copyBelow = 64 << 10

func (im *Image) bytes(p []byte) {
	if len(p) == 0 {
		return
	}
	if n := len(im.Parts); n > 0 && len(p) < copyBelow {
		if last := &im.Parts[n-1]; last.Data != nil && len(last.Data) < copyBelow {
			last.Data = append(last.Data, p...) // ours: larger ones are not joined
			last.Size += int64(len(p))
			im.Size += int64(len(p))
			return
		}
	}
	if len(p) < copyBelow {
		p = append(make([]byte, 0, 4<<10), p...)
	} else {
		p = p[:len(p):len(p)]
	}
	im.Parts = append(im.Parts, Part{Off: im.Size, Size: int64(len(p)), Data: p})
	im.Size += int64(len(p))
}

func (im *Image) file(f *hostFile) {
	im.Parts = append(im.Parts, Part{Off: im.Size, Size: f.size, Path: f.path})
	im.Size += f.size
}

func (im *Image) pad(align int64) {
	if r := im.Size % align; r != 0 {
		im.bytes(make([]byte, align-r))
	}
}

// open opens the part's file and checks that it is still the file that was
// added, in its length.
func (p *Part) open() (*os.File, error) {
	f, err := os.Open(p.Path)
	if err != nil {
		return nil, fmt.Errorf("initial RAM file system: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("initial RAM file system: %s: fstat: %w", p.Path, err)
	}
	if st.Size != p.Size || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, fmt.Errorf("initial RAM file system: %s changed while the image was made (%d bytes, now %d)", p.Path, p.Size, st.Size)
	}
	return f, nil
}

// WriteTo writes the image to w.
func (im *Image) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for i := range im.Parts {
		n, err := im.Parts[i].writeTo(w)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (p *Part) writeTo(w io.Writer) (int64, error) {
	if p.Data != nil {
		n, err := w.Write(p.Data)
		return int64(n), err
	}
	f, err := p.open()
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, p.Size))
	if err == nil && n != p.Size {
		err = fmt.Errorf("initial RAM file system: %s changed while it was read: ends at byte %d of %d", p.Path, n, p.Size)
	}
	return n, err
}

// Memory is where an image is loaded to; guest.Memory is one.
type Memory interface {
	WriteAt(p []byte, a guest.GPA) error
	Load(a guest.GPA, f *os.File, off int64, n uint64) error
}

// Load puts the image into guest RAM at address at. Files are read straight
// into place.
func (im *Image) Load(m Memory, at guest.GPA) error {
	for i := range im.Parts {
		if err := im.Parts[i].load(m, at); err != nil {
			return err
		}
	}
	return nil
}

func (p *Part) load(m Memory, at guest.GPA) error {
	a, ok := at.Add(uint64(p.Off))
	if !ok {
		return fmt.Errorf("initial RAM file system at %v: %w", at, guest.ErrRange)
	}
	if p.Data != nil {
		if err := m.WriteAt(p.Data, a); err != nil {
			return fmt.Errorf("initial RAM file system: %w", err)
		}
		return nil
	}
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.Load(a, f, 0, uint64(p.Size)); err != nil {
		return fmt.Errorf("initial RAM file system: %w", err)
	}
	return nil
}
