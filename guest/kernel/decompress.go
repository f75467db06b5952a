package kernel

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxWindow bounds the memory that a compressed file can make a decoder
// allocate for its history. The largest window that xz and zstd presets ask
// for is 128 MiB (zstd --ultra -22).
const maxWindow = 256 << 20

// peekBytes covers the magic of every format and the first block header of
// an xz stream (12 bytes of stream header, at most 1024 of block header).
const peekBytes = 12 + 1024

var errTooBig = errors.New("larger than allowed")

// decompress returns a reader of what r holds, told by its first bytes: xz,
// zstd, gzip, or anything else as it is. The caller closes it; r stays open.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(peekBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		if err := checkXZWindow(head); err != nil {
			return nil, err
		}
		x, err := xz.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return named{io.NopCloser(x), "xz"}, nil
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return named{z.IOReadCloser(), "zstd"}, nil
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		g, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return named{g, "gzip"}, nil
	}
	return io.NopCloser(b), nil
}

// named says which format an error comes from: "unexpected EOF" alone helps
// nobody.
type named struct {
	io.ReadCloser
	format string
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.format, err)
	}
	return k, err
}

// checkXZWindow refuses a first block whose dictionary is over maxWindow. The
// layout is section 3.1 of "The .xz File Format". A header that it cannot
// follow is left to the decoder, which reports it.
func checkXZWindow(head []byte) error {
	if len(head) < 12+2 || head[12] == 0 {
		return nil
	}
	flags, b := head[13], head[14:]
	if n := (int(head[12])+1)*4 - 2; n < len(b) {
		b = b[:n]
	}
	skipVLI := func() {
		for len(b) > 0 && b[0]&0x80 != 0 {
			b = b[1:]
		}
		if len(b) > 0 {
			b = b[1:]
		}
	}
	for _, bit := range []byte{0x40, 0x80} { // compressed size, uncompressed size
		if flags&bit != 0 {
			skipVLI()
		}
	}
	for range flags&3 + 1 {
		if len(b) < 3 {
			return nil
		}
		id, size := b[0], int(b[1])
		if id == 0x21 && size == 1 {
			if n, err := lzma.DecodeDictCap(b[2]); err == nil && n > maxWindow {
				return fmt.Errorf("xz: dictionary of %d MiB: %w (%d MiB)", n>>20, errTooBig, maxWindow>>20)
			}
		}
		if len(b) < 2+size {
			return nil
		}
		b = b[2+size:]
	}
	return nil
}

// readBounded reads all of r, at most max bytes.
func readBounded(r io.Reader, max int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(r, max+1))
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("%w (%d bytes)", errTooBig, max)
	}
	return b.Bytes(), nil
}

// copyBounded copies all of r to w, at most max bytes.
func copyBounded(w io.Writer, r io.Reader, max int64) (int64, error) {
	n, err := io.Copy(w, io.LimitReader(r, max+1))
	if err == nil && n > max {
		err = fmt.Errorf("%w (%d bytes)", errTooBig, max)
	}
	return n, err
}
