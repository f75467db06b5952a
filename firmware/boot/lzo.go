package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
)

// An lzop file is a header and blocks of LZO1X data, all integers big-endian.

const lzopMagic = "\x89LZO\x00\r\n\x1a\n"

// maxLZOBlock is lzop's own limit for a block.
const maxLZOBlock = 64 << 20

const (
	lzopAdlerData       = 1 << 0
	lzopAdlerCompressed = 1 << 1
	lzopExtraField      = 1 << 6
	lzopCRCData         = 1 << 8
	lzopCRCCompressed   = 1 << 9
	lzopMultipart       = 1 << 10
	lzopFilter          = 1 << 11
)

var errLZO = errors.New("damaged LZO data")

// unpackLZOP writes what the lzop file in r unpacks to.
func unpackLZOP(w io.Writer, r io.Reader) error {
	read := func(n int) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	var err error
	number := func(n int) uint32 {
		if err != nil {
			return 0
		}
		var b []byte
		if b, err = read(n); err != nil {
			return 0
		}
		var v uint32
		for _, c := range b {
			v = v<<8 | uint32(c)
		}
		return v
	}
	if _, err := read(len(lzopMagic)); err != nil {
		return err
	}
	version := number(2)
	number(2) // library version
	if version >= 0x0940 {
		number(2) // version needed to extract
	}
	number(1) // method: all of LZO1X decode alike
	if version >= 0x0940 {
		number(1) // level
	}
	flags := number(4)
	if err == nil && flags&(lzopFilter|lzopMultipart|lzopExtraField) != 0 {
		return fmt.Errorf("%w: lzop flags %#x", errLZO, flags)
	}
	number(4) // mode
	number(4) // time
	if version >= 0x0940 {
		number(4) // high half of the time
	}
	if name := number(1); err == nil && name != 0 {
		_, err = read(int(name))
	}
	number(4) // header checksum: the blocks have their own
	for err == nil {
		size := number(4)
		if err != nil || size == 0 {
			return err
		}
		packed := number(4)
		if err == nil && (size > maxLZOBlock || packed > size || packed == 0) {
			return fmt.Errorf("%w: block of %d bytes for %d", errLZO, packed, size)
		}
		var sum uint32
		if flags&lzopAdlerData != 0 {
			sum = number(4)
		}
		if flags&lzopCRCData != 0 {
			number(4)
		}
		if packed < size {
			if flags&lzopAdlerCompressed != 0 {
				number(4)
			}
			if flags&lzopCRCCompressed != 0 {
				number(4)
			}
		}
		if err != nil {
			return err
		}
		// Read before allocating for the output: the file has to hold what
		// it claims.
		var in []byte
		if in, err = io.ReadAll(io.LimitReader(r, int64(packed))); err != nil {
			return err
		}
		if len(in) != int(packed) {
			return io.ErrUnexpectedEOF
		}
		out := in
		if packed < size {
			if out, err = lzo1x(in, int(size)); err != nil {
				return err
			}
		}
		if flags&lzopAdlerData != 0 && adler32.Checksum(out) != sum {
			return fmt.Errorf("%w: checksum differs", errLZO)
		}
		if _, err = w.Write(out); err != nil {
			return err
		}
	}
	return err
}

// lzo1x unpacks one block of size bytes. The stream is a row of instructions
// (Documentation/staging/lzo.rst in Linux): copy literals, or copy an earlier
// part of the output and up to three literals after it. What the low
// instructions mean depends on how many literals the one before copied.
func lzo1x(in []byte, size int) ([]byte, error) {
	// No instruction byte makes more than 255 bytes of output, so a small
	// input cannot claim a large buffer.
	if size > len(in)*256+256 {
		return nil, fmt.Errorf("%w: %d bytes cannot hold %d", errLZO, len(in), size)
	}
	out := make([]byte, 0, size)
	pos := 0
	next := func() (int, bool) {
		if pos >= len(in) {
			return 0, false
		}
		pos++
		return int(in[pos-1]), true
	}
	// long continues a length whose field was 0: 255 for each zero byte.
	long := func(base int) (int, bool) {
		n := base
		for {
			b, ok := next()
			if !ok {
				return 0, false
			}
			if b != 0 {
				return n + b, true
			}
			n += 255
		}
	}
	literals := func(n int) bool {
		if n > len(in)-pos || n > size-len(out) {
			return false
		}
		out = append(out, in[pos:pos+n]...)
		pos += n
		return true
	}
	match := func(distance, n int) bool {
		from := len(out) - distance
		if from < 0 || n > size-len(out) {
			return false
		}
		if distance >= n {
			out = append(out, out[from:from+n]...)
			return true
		}
		for i := range n { // it overlaps what it makes
			out = append(out, out[from+i])
		}
		return true
	}

	// state is the number of literals that the last instruction copied; 4
	// stands for four or more.
	state := 0
	if len(in) > 0 && in[0] > 17 {
		n := int(in[0]) - 17
		pos = 1
		if !literals(n) {
			return nil, errLZO
		}
		state = min(n, 4)
	}
	for {
		t, ok := next()
		if !ok {
			return nil, errLZO
		}
		var distance, n, after int
		switch {
		case t >= 64:
			high, ok := next()
			if !ok {
				return nil, errLZO
			}
			n = t>>5 + 1
			distance = high<<3 + t>>2&7 + 1
			after = t & 3
		case t >= 16:
			base, mask := 31, 31
			if t < 32 {
				base, mask = 7, 7
			}
			n = t & mask
			if n == 0 {
				if n, ok = long(base); !ok {
					return nil, errLZO
				}
			}
			n += 2
			if len(in)-pos < 2 {
				return nil, errLZO
			}
			word := int(binary.LittleEndian.Uint16(in[pos:]))
			pos += 2
			distance, after = word>>2+1, word&3
			if t < 32 {
				distance = 16384 + t&8<<11 + word>>2
				if distance == 16384 { // end of the block
					if len(out) != size {
						return nil, fmt.Errorf("%w: %d bytes instead of %d", errLZO, len(out), size)
					}
					return out, nil
				}
			}
		case state == 0:
			n = t
			if n == 0 {
				if n, ok = long(15); !ok {
					return nil, errLZO
				}
			}
			if !literals(n + 3) {
				return nil, errLZO
			}
			state = 4
			continue
		default:
			high, ok := next()
			if !ok {
				return nil, errLZO
			}
			n, distance = 2, high<<2+t>>2+1
			if state == 4 {
				n, distance = 3, high<<2+t>>2+2049
			}
			after = t & 3
		}
		if !match(distance, n) || !literals(after) {
			return nil, errLZO
		}
		state = after
	}
}
