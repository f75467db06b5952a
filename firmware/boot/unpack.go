package boot

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// A packing is a compression format of kernels.
type packing int

const (
	unpacked packing = iota
	packedGzip
	packedBzip2
	packedLZMA
	packedXZ
	packedLZO
	packedLZ4
	packedZstd
)

func (p packing) String() string {
	return [...]string{"uncompressed", "gzip", "bzip2", "LZMA", "xz", "LZO", "LZ4", "zstd"}[p]
}

// packingOf tells the format by its magic number; unpacked if there is none.
func packingOf(b []byte) packing {
	for _, m := range []struct {
		magic string
		p     packing
	}{
		{"\x1f\x8b", packedGzip},
		{"BZh", packedBzip2},
		{"\x5d\x00\x00", packedLZMA},
		{"\xfd7zXZ\x00", packedXZ},
		{lzopMagic, packedLZO},
		{"\x02\x21\x4c\x18", packedLZ4}, // the legacy frame
		{"\x28\xb5\x2f\xfd", packedZstd},
	} {
		if bytes.HasPrefix(b, []byte(m.magic)) {
			return m.p
		}
	}
	return unpacked
}

// Bounds on unpacking.
const (
	// maxUnpacked is larger than any kernel; a bzImage's own init_size bounds
	// it more tightly, as it covers the unpacked image.
	maxUnpacked = 1 << 30
	// maxWindow is the largest dictionary accepted. Kernels are packed with
	// up to 128 MiB (zstd -22, xz with the dictionary of its build system).
	maxWindow = 128 << 20
	// lz4Block is the size of an unpacked block in LZ4's legacy frame.
	lz4Block = 8 << 20
)

var errTooLarge = errors.New("unpacks to more than it may")

// A sink counts what is unpacked, checks that it is an ELF file and bounds it.
type sink struct {
	w     io.Writer
	n     int64
	limit int64
	first []byte // up to four bytes, until they are checked
}

func (s *sink) Write(p []byte) (int, error) {
	if int64(len(p)) > s.limit-s.n {
		return 0, fmt.Errorf("%w: %d MiB", errTooLarge, s.limit>>20)
	}
	if len(s.first) < 4 {
		s.first = append(s.first, p[:min(len(p), 4-len(s.first))]...)
		if len(s.first) == 4 && !isELF(s.first) {
			return 0, errors.New("what it unpacks to is not an ELF kernel")
		}
	}
	n, err := s.w.Write(p)
	s.n += int64(n)
	return n, err
}

// Unpack writes the vmlinux inside a bzImage, or the contents of a compressed
// file, to w as it unpacks. It returns the number of bytes written and the
// name of the compression. What was written is an ELF file by its magic
// number; read it with New.
func (im *Image) Unpack(w io.Writer) (n int64, compression string, err error) {
	p, off, size := im.packing, int64(0), im.size
	limit := int64(maxUnpacked)
	switch im.Kind {
	case BzImage:
		if off, size, err = im.Setup.payload(im.size); err != nil {
			return 0, "", fmt.Errorf("%s: %w", im.Name, err)
		}
		magic := make([]byte, min(size, 9))
		if err := im.read(magic, off); err != nil {
			return 0, "", err
		}
		if p = packingOf(magic); p == unpacked && !isELF(magic) {
			return 0, "", fmt.Errorf("%s: is compressed in an unknown way (% x); use --boot=bzimage", im.Name, magic)
		}
		if im.Setup.InitSize != 0 {
			limit = min(limit, int64(im.Setup.InitSize))
		}
	case Compressed:
	default:
		return 0, "", fmt.Errorf("%s: is a %v: nothing to unpack", im.Name, im.Kind)
	}

	// The kernel's build appends the size of the original to every format
	// that does not carry it itself (scripts/Makefile.lib, size_append).
	var appended int64 = -1
	if im.Kind == BzImage && p != packedGzip && p != unpacked {
		if size < 4 {
			return 0, "", fmt.Errorf("%s: is cut short: compressed kernel of %d bytes", im.Name, size)
		}
		var b [4]byte
		if err := im.read(b[:], off+size-4); err != nil {
			return 0, "", err
		}
		appended = int64(le.Uint32(b[:]))
		size -= 4
	}
	out := &sink{w: w, limit: limit}
	if err := unpackStream(out, bufio.NewReaderSize(io.NewSectionReader(im.r, off, size), 1<<18), p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it is cut short")
		}
		return out.n, "", fmt.Errorf("%s: unpacking (%v): %w", im.Name, p, err)
	}
	if out.n < 4 {
		return out.n, "", fmt.Errorf("%s: unpacking (%v): what it unpacks to is not an ELF kernel", im.Name, p)
	}
	if appended >= 0 && out.n != appended {
		return out.n, "", fmt.Errorf("%s: unpacking (%v): %d bytes came out, but the image says %d", im.Name, p, out.n, appended)
	}
	return out.n, p.String(), nil
}

func unpackStream(w io.Writer, r *bufio.Reader, p packing) error {
	switch p {
	case packedGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		z.Multistream(false)
		return copyAll(w, z)
	case packedBzip2:
		return copyAll(w, bzip2.NewReader(r))
	case packedLZMA:
		head, err := r.Peek(lzma.HeaderLen)
		if err != nil {
			return err
		}
		if window := le.Uint32(head[1:]); window > maxWindow {
			return fmt.Errorf("dictionary of %d MiB: at most %d are taken", window>>20, maxWindow>>20)
		}
		z, err := lzma.NewReader(r)
		if err != nil {
			return err
		}
		return copyAll(w, z)
	case packedXZ:
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return err
		}
		z.Multistream(false)
		return copyAll(w, z)
	case packedLZO:
		return unpackLZOP(w, r)
	case packedLZ4:
		return unpackLZ4(w, r)
	case packedZstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxUnpacked))
		if err != nil {
			return err
		}
		defer z.Close()
		_, err = z.WriteTo(w)
		return err
	}
	return copyAll(w, r)
}

// copyAll hides the readers' and writers' own transfer methods, so that the
// buffer has the same size for all.
func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	return err
}

// unpackLZ4 reads LZ4's legacy frame: blocks of 8 MiB, each behind its packed
// size, until the data ends. Frames may follow each other.
func unpackLZ4(w io.Writer, r *bufio.Reader) error {
	const magic = 0x184C2102
	var word [4]byte
	if _, err := io.ReadFull(r, word[:]); err != nil {
		return err
	}
	var in, out []byte
	for {
		if _, err := io.ReadFull(r, word[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		size := le.Uint32(word[:])
		if size == magic {
			continue
		}
		if size == 0 || int(size) > lz4.CompressBlockBound(lz4Block) {
			return fmt.Errorf("LZ4 block of %d bytes", size)
		}
		if out == nil {
			in, out = make([]byte, lz4.CompressBlockBound(lz4Block)), make([]byte, lz4Block)
		}
		if _, err := io.ReadFull(r, in[:size]); err != nil {
			return io.ErrUnexpectedEOF
		}
		n, err := lz4.UncompressBlock(in[:size], out)
		if err != nil {
			return fmt.Errorf("damaged LZ4 block: %w", err)
		}
		if _, err := w.Write(out[:n]); err != nil {
			return err
		}
	}
}

// Unpack writes the vmlinux inside the bzImage, or compressed vmlinux, f to w:
// Open and Image.Unpack in one. A file that is an ELF already is copied.
func Unpack(f *os.File, w io.Writer) error {
	im, err := Open(f)
	if err != nil {
		return err
	}
	if im.Kind == ELF64 || im.Kind == ELF32 {
		if err := copyAll(w, io.NewSectionReader(f, 0, im.size)); err != nil {
			return fmt.Errorf("%s: copying: %w", im.Name, err)
		}
		return nil
	}
	_, _, err = im.Unpack(w)
	return err
}
