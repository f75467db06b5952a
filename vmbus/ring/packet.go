package ring

import (
	"encoding/binary"
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// A Packet is a packet without its place in a ring. What a Reader returns is
// the Reader's own copy: the slices stay valid until its next call of Next.
type Packet struct {
	Type          proto.PacketType
	Flags         uint16 // proto.CompletionRequested or 0
	TransactionID uint64

	// Payload is what follows descriptor and ranges. Rings count in units of 8
	// bytes, so a received payload may be up to 7 zero bytes longer than the
	// sent one.
	Payload []byte

	// Ranges is the external data of a GPA-direct packet. A Reader has checked
	// the shape (PageRange.Valid), not that the pages are RAM: that is for
	// guest.Memory to find at the access, as a failure of this one request.
	Ranges []guest.PageRange

	// TransferSet, SenderOwns and Transfers belong to a transfer-pages packet:
	// ranges of a GPADL that both ends know by a number.
	TransferSet uint16
	SenderOwns  bool
	Transfers   []proto.TransferRange
}

// WantsCompletion reports whether the sender expects a completion packet.
func (p *Packet) WantsCompletion() bool { return p.Flags&proto.CompletionRequested != 0 }

// headSize returns the bytes of descriptor and ranges.
func (p *Packet) headSize() int {
	switch p.Type {
	case proto.PacketGPADirect:
		n := proto.GPADirectSize
		for _, r := range p.Ranges {
			n += proto.GPARangeSize + 8*len(r.PFNs)
		}
		return n
	case proto.PacketTransferPages:
		return proto.TransferHeaderSize + proto.TransferRangeSize*len(p.Transfers)
	}
	return proto.DescriptorSize
}

// Size returns the bytes that p takes in a ring, its trailer included.
func (p *Packet) Size() int { return p.headSize() + (len(p.Payload)+7)&^7 + proto.TrailerSize }

// appendHead encodes descriptor and ranges.
func (p *Packet) appendHead(b []byte) []byte {
	head := p.headSize()
	b = proto.Descriptor{
		Type:          p.Type,
		Offset8:       uint16(head / 8),
		Length8:       uint16((p.Size() - proto.TrailerSize) / 8),
		Flags:         p.Flags,
		TransactionID: p.TransactionID,
	}.Append(b)
	switch p.Type {
	case proto.PacketGPADirect:
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Ranges)))
		for _, r := range p.Ranges {
			b = proto.AppendRange(b, r)
		}
	case proto.PacketTransferPages:
		var owns byte
		if p.SenderOwns {
			owns = 1
		}
		b = binary.LittleEndian.AppendUint16(b, p.TransferSet)
		b = append(b, owns, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Transfers)))
		for _, r := range p.Transfers {
			b = binary.LittleEndian.AppendUint32(b, r.ByteCount)
			b = binary.LittleEndian.AppendUint32(b, r.ByteOffset)
		}
	}
	return b
}

// checkDescriptor tells what is wrong with a descriptor on its own.
func checkDescriptor(d proto.Descriptor) error {
	switch d.Type {
	case proto.PacketInBand, proto.PacketCompletion, proto.PacketGPADirect, proto.PacketTransferPages:
	default:
		return fmt.Errorf("%w: %v", ErrCorrupt, d.Type)
	}
	if d.Flags&^proto.CompletionRequested != 0 {
		return fmt.Errorf("%w: packet flags %#x", ErrCorrupt, d.Flags)
	}
	head := uint16(proto.DescriptorSize / 8)
	if d.Type == proto.PacketGPADirect || d.Type == proto.PacketTransferPages {
		head = proto.GPADirectSize / 8
	}
	if d.Offset8 < head || d.Length8 < d.Offset8 {
		return fmt.Errorf("%w: %v packet of %d units, payload at %d", ErrCorrupt, d.Type, d.Length8, d.Offset8)
	}
	return nil
}

// scratch keeps the slices of one packet after the other.
type scratch struct {
	ranges    []guest.PageRange
	pfns      []uint64
	transfers []proto.TransferRange
}

// parse fills p from its descriptor and b, the private copy of the packet
// without trailer. Everything in p is bounded by the length of b.
func (s *scratch) parse(p *Packet, d proto.Descriptor, b []byte) error {
	*p = Packet{Type: d.Type, Flags: d.Flags, TransactionID: d.TransactionID, Payload: b[8*int(d.Offset8):]}
	head := b[:8*int(d.Offset8)]
	switch d.Type {
	case proto.PacketGPADirect:
		return s.parseGPADirect(p, head)
	case proto.PacketTransferPages:
		return s.parseTransferPages(p, head)
	}
	return nil
}

func (s *scratch) parseGPADirect(p *Packet, head []byte) error {
	count := binary.LittleEndian.Uint32(head[20:])
	b := head[proto.GPADirectSize:]
	if uint64(count) > uint64(len(b))/(proto.GPARangeSize+8) {
		return fmt.Errorf("%w: %d GPA ranges in %d bytes", ErrCorrupt, count, len(b))
	}
	// The slices of earlier ranges point into pfns, so it must not move.
	if n := len(b) / 8; cap(s.pfns) < n {
		s.pfns = make([]uint64, 0, n)
	}
	s.ranges, s.pfns = s.ranges[:0], s.pfns[:0]
	for range count {
		if len(b) < proto.GPARangeSize {
			return fmt.Errorf("%w: GPA ranges overrun the descriptor", ErrCorrupt)
		}
		r := guest.PageRange{ByteCount: binary.LittleEndian.Uint32(b), ByteOffset: binary.LittleEndian.Uint32(b[4:])}
		b = b[proto.GPARangeSize:]
		if r.ByteCount == 0 || r.ByteOffset >= guest.PageSize {
			return fmt.Errorf("%w: GPA range of %d bytes at offset %d", ErrCorrupt, r.ByteCount, r.ByteOffset)
		}
		n := guest.PagesFor(r.ByteOffset, r.ByteCount)
		if n > uint64(len(b)/8) {
			return fmt.Errorf("%w: GPA range of %d pages in %d bytes", ErrCorrupt, n, len(b))
		}
		first := len(s.pfns)
		for i := range int(n) {
			s.pfns = append(s.pfns, binary.LittleEndian.Uint64(b[8*i:]))
		}
		r.PFNs = s.pfns[first:len(s.pfns):len(s.pfns)]
		s.ranges = append(s.ranges, r)
		b = b[8*n:]
	}
	p.Ranges = s.ranges
	return nil
}

func (s *scratch) parseTransferPages(p *Packet, head []byte) error {
	p.TransferSet = binary.LittleEndian.Uint16(head[16:])
	p.SenderOwns = head[18] != 0
	count := binary.LittleEndian.Uint32(head[20:])
	b := head[proto.TransferHeaderSize:]
	if uint64(count) > uint64(len(b))/proto.TransferRangeSize {
		return fmt.Errorf("%w: %d transfer ranges in %d bytes", ErrCorrupt, count, len(b))
	}
	s.transfers = s.transfers[:0]
	for ; count > 0; count-- {
		s.transfers = append(s.transfers, proto.TransferRange{
			ByteCount:  binary.LittleEndian.Uint32(b),
			ByteOffset: binary.LittleEndian.Uint32(b[4:]),
		})
		b = b[proto.TransferRangeSize:]
	}
	p.Transfers = s.transfers
	return nil
}
