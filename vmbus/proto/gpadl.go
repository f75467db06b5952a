package proto

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

// GPADLHeaderPFNs and GPADLBodyPFNs are how many page numbers fit into a
// header with one range and into a body, of 240 bytes each.
const (
	GPADLHeaderPFNs = 26
	GPADLBodyPFNs   = 28
)

// ErrRange reports GPADL ranges that no guest has reason to send.
var ErrRange = errors.New("malformed GPADL range")

// A RangeParser puts the ranges of a GPADL together from the words of its
// messages. The stream of a range is {u32 byte count, u32 byte offset, u64
// PFN...}; ranges follow each other without a gap, and a message may end
// anywhere between two words. Byte counts rule: the length field of the
// GPADL's header wraps for large ones in Linux's own arithmetic.
//
// Memory grows with the page numbers that really arrived, not with what a
// header announces. It is counted in page numbers, of 8 bytes; a range costs
// RangeCost of them beside its own.
type RangeParser struct {
	want   int    // ranges still to come, the open one included
	budget uint64 // what announced ranges may still cost
	cost   uint64 // what arrived
	open   bool   // ranges[len-1] waits for page numbers
	need   uint64 // page numbers it waits for
	ranges []guest.PageRange
	check  func(pfn uint64) error
}

// RangeCost is what a range costs beside its page numbers: a PageRange and the
// allocation of its list.
const RangeCost = 6

// NewRangeParser returns a parser of count ranges that cost at most budget in
// all. check, which may be nil, sees every page number. No ranges at all are
// an error, from Feed.
func NewRangeParser(count int, budget uint64, check func(pfn uint64) error) *RangeParser {
	return &RangeParser{want: count, budget: budget, check: check}
}

// Feed takes the next bytes and reports whether all ranges are complete. Bytes
// after the last range, and a rest of fewer than 8, are padding. An error is
// final.
func (p *RangeParser) Feed(b []byte) (done bool, err error) {
	if p.want <= 0 {
		return false, fmt.Errorf("%w: no ranges", ErrRange)
	}
	for ; len(b) >= 8; b = b[8:] {
		if !p.open {
			count, off := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
			if count == 0 || off >= guest.PageSize {
				return false, fmt.Errorf("%w: byte count %d, byte offset %d", ErrRange, count, off)
			}
			p.need = guest.PagesFor(off, count)
			if cost := p.need + RangeCost; cost > p.budget {
				return false, fmt.Errorf("%w: a range of %d pages is over the limit", ErrRange, p.need)
			} else {
				p.budget -= cost
			}
			p.open = true
			p.cost += RangeCost
			p.ranges = append(p.ranges, guest.PageRange{ByteOffset: off, ByteCount: count})
			continue
		}
		pfn := binary.LittleEndian.Uint64(b)
		if p.check != nil {
			if err := p.check(pfn); err != nil {
				return false, err
			}
		}
		r := &p.ranges[len(p.ranges)-1]
		r.PFNs = append(r.PFNs, pfn)
		p.cost++
		if p.need--; p.need == 0 {
			p.open = false
			if p.want--; p.want == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// Cost returns what the ranges parsed so far cost, in page numbers.
func (p *RangeParser) Cost() uint64 { return p.cost }

// Ranges returns the ranges parsed so far.
func (p *RangeParser) Ranges() []guest.PageRange { return p.ranges }

// AppendRange appends the stream of r.
func AppendRange(b []byte, r guest.PageRange) []byte {
	b = binary.LittleEndian.AppendUint32(b, r.ByteCount)
	b = binary.LittleEndian.AppendUint32(b, r.ByteOffset)
	for _, pfn := range r.PFNs {
		b = binary.LittleEndian.AppendUint64(b, pfn)
	}
	return b
}

// EncodeGPADL returns the messages that establish a GPADL of the given ranges:
// a header and as many bodies as they need, each at most 240 bytes.
func EncodeGPADL(relid RelID, id GPADLID, ranges ...guest.PageRange) [][]byte {
	var stream []byte
	for _, r := range ranges {
		stream = AppendRange(stream, r)
	}
	const words = 8 * (1 + GPADLHeaderPFNs)
	n := min(len(stream), words)
	head := Append(nil, GPADLHeader{RelID: relid, GPADL: id, RangeBufLen: uint16(len(stream)), RangeCount: uint16(len(ranges))})
	msgs := [][]byte{append(head, stream[:n]...)}
	for stream = stream[n:]; len(stream) > 0; stream = stream[n:] {
		n = min(len(stream), 8*GPADLBodyPFNs)
		msgs = append(msgs, append(Append(nil, GPADLBody{GPADL: id}), stream[:n]...))
	}
	return msgs
}
