package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hvpost/hvpost/guest"
	"pgregory.net/rapid"
)

// drawRange draws a legal range of at most maxPages pages.
func drawRange(t *rapid.T, maxPages int) guest.PageRange {
	off := rapid.Uint32Range(0, guest.PageSize-1).Draw(t, "offset")
	pages := rapid.IntRange(1, maxPages).Draw(t, "pages")
	last := rapid.Uint32Range(1, guest.PageSize).Draw(t, "last")
	count := uint32(pages-1)*guest.PageSize + last
	if count <= off { // the offset takes its bytes from the first page
		count = 1
	} else {
		count -= off
	}
	r := guest.PageRange{ByteOffset: off, ByteCount: count}
	for i := range guest.PagesFor(off, count) {
		r.PFNs = append(r.PFNs, 100+i*3)
	}
	return r
}

// feed runs messages of EncodeGPADL through a parser as a server would.
func feed(msgs [][]byte, pad bool, budget uint64) (*RangeParser, bool, error) {
	var h GPADLHeader
	rest, err := Decode(msgs[0], &h)
	if err != nil {
		return nil, false, err
	}
	p := NewRangeParser(int(h.RangeCount), budget, nil)
	for i := 0; ; i++ {
		if pad {
			rest = append(append([]byte(nil), rest...), make([]byte, 240-len(msgs[i]))...)
		}
		done, err := p.Feed(rest)
		if done || err != nil {
			return p, done && i == len(msgs)-1, err
		}
		if i+1 == len(msgs) {
			return p, false, nil
		}
		var b GPADLBody
		if rest, err = Decode(msgs[i+1], &b); err != nil {
			return p, false, err
		}
	}
}

func TestGPADLRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []guest.PageRange
		for range rapid.IntRange(1, 4).Draw(t, "ranges") {
			want = append(want, drawRange(t, 90))
		}
		msgs := EncodeGPADL(7, 0xE1E10, want...)
		for i, m := range msgs {
			if len(m) > 240 {
				t.Fatalf("message %d has %d bytes", i, len(m))
			}
		}
		p, whole, err := feed(msgs, rapid.Bool().Draw(t, "pad") && len(msgs) == 1, 1<<20)
		if err != nil || !whole {
			t.Fatalf("whole %v, %v", whole, err)
		}
		if d := cmp.Diff(want, p.Ranges()); d != "" {
			t.Fatal(d)
		}
	})
}

// Linux: 26 page numbers in the header, 28 in each body.
func TestGPADLMessageCounts(t *testing.T) {
	for _, c := range []struct{ pages, msgs int }{{1, 1}, {26, 1}, {27, 2}, {54, 2}, {55, 3}, {4096, 147}} {
		r := guest.PageRange{ByteCount: uint32(c.pages) * guest.PageSize, PFNs: make([]uint64, c.pages)}
		if got := len(EncodeGPADL(1, 1, r)); got != c.msgs {
			t.Errorf("%d pages: %d messages, want %d", c.pages, got, c.msgs)
		}
	}
}

// A body padded with zeros to 240 bytes must not be read as page number 0: the
// padding of an incomplete GPADL is shorter than a word.
func TestGPADLPaddedBodies(t *testing.T) {
	r := guest.PageRange{ByteCount: 60 * guest.PageSize}
	for i := range uint64(60) {
		r.PFNs = append(r.PFNs, i+1)
	}
	p, whole, err := feed(EncodeGPADL(1, 1, r), true, 1<<20)
	if err != nil || !whole {
		t.Fatalf("whole %v, %v", whole, err)
	}
	if d := cmp.Diff([]guest.PageRange{r}, p.Ranges()); d != "" {
		t.Fatal(d)
	}
}

func words(w ...uint64) (b []byte) {
	for _, x := range w {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func TestRangeParserRefuses(t *testing.T) {
	outside := errors.New("outside")
	for name, c := range map[string]struct {
		count int
		max   uint64
		in    []byte
	}{
		"no ranges":       {0, 10, words(4096, 1)},
		"negative":        {-1, 10, words(4096, 1)},
		"zero bytes":      {1, 10, words(0, 1)},
		"offset 4096":     {1, 10, words(1|4096<<32, 1)},
		"offset 2^32-1":   {1, 10, words(1|0xFFFFFFFF<<32, 1)},
		"too many pages":  {1, 10, words(11*4096, 1)},
		"all of 4 GiB":    {1, 10, words(0xFFFFFFFF, 1)},
		"page refused":    {1, 10, words(4096, 666)},
		"limit is shared": {2, 16 + RangeCost, words(8*4096, 1, 2, 3, 4, 5, 6, 7, 8, 3*4096)},
		"ranges cost":     {3, 2*RangeCost + 2, words(1, 1, 1, 1, 1, 1)},
	} {
		p := NewRangeParser(c.count, c.max, func(pfn uint64) error {
			if pfn == 666 {
				return outside
			}
			return nil
		})
		if done, err := p.Feed(c.in); done || err == nil {
			t.Errorf("%s: done %v, no error", name, done)
		}
	}
}

// What a header announces costs nothing before the page numbers arrive.
func TestRangeParserMemoryFollowsInput(t *testing.T) {
	n := testing.AllocsPerRun(100, func() {
		p := NewRangeParser(65535, 1<<40, nil)
		if done, err := p.Feed(words(0xFFFFF000)); done || err != nil {
			panic(fmt.Sprint(done, err))
		}
		if r := p.Ranges(); len(r) != 1 || cap(r[0].PFNs) != 0 {
			panic("page numbers reserved ahead of their arrival")
		}
	})
	if n > 4 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRangeParser(f *testing.F) {
	f.Add(uint16(1), words(4096, 1))
	f.Add(uint16(2), words(4096|4095<<32, 1, 2, 1, 9))
	f.Add(uint16(65535), words(0xFFFFFFFF|4095<<32, 1, 2, 3))
	f.Fuzz(func(t *testing.T, count uint16, b []byte) {
		const limit = 64
		p := NewRangeParser(int(count), limit, nil)
		cut := len(b) / 2 / 8 * 8
		done, err := p.Feed(b[:cut])
		if !done && err == nil {
			done, err = p.Feed(b[cut:])
		}
		pages := 0
		for i, r := range p.Ranges() {
			pages += len(r.PFNs)
			if complete := done || i < len(p.Ranges())-1; complete && !r.Valid() {
				t.Fatalf("range %d of a complete set is not valid: %+v", i, r)
			}
		}
		if pages > limit || pages > len(b)/8 || p.Cost() > limit || p.Cost() != uint64(pages+RangeCost*len(p.Ranges())) {
			t.Fatalf("%d pages from %d bytes", pages, len(b))
		}
		if done && (err != nil || len(p.Ranges()) != int(count)) {
			t.Fatalf("done with %d of %d ranges, %v", len(p.Ranges()), count, err)
		}
	})
}
