package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// latched fails the test unless Next answers ErrCorrupt, keeps answering it
// when the ring looks well again, and gives no packet.
func latched(t *testing.T, name string, r *Reader) {
	t.Helper()
	var p Packet
	ok, err := r.Next(&p)
	if ok || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%s: packet %v, error %v", name, ok, err)
		return
	}
	r.hdr.write.Store(r.out)
	if ok, again := r.Next(&p); ok || again != err || r.Err() != err {
		t.Errorf("%s: not latched: %v, then %v", name, err, again)
	}
	if _, again := r.Unmask(); again != err {
		t.Errorf("%s: Unmask forgot the error", name)
	}
}

// Every class of a write index that no peer can reach ends the ring at once.
func TestWriteIndexClasses(t *testing.T) {
	mem := newMemory(t)
	for name, x := range map[string]uint32{
		"size": 4096, "size+8": 4104, "unaligned 1": 1, "unaligned 4": 4, "last byte": 4095, "negative": 0x80000000,
		"2^32-8": 0xFFFFFFF8, "2^32-1": 0xFFFFFFFF, "size unaligned": 4097,
	} {
		p := newPair(t, mem, contiguous(2), 0)
		p.r.hdr.write.Store(x)
		latched(t, name, p.r)
		p = newPair(t, mem, contiguous(2), 0)
		poke(mem, p.pfns, offWrite, x)
		if _, err := NewReader(mem, p.pfns, 0, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s at open: %v", name, err)
		}
		if _, err := NewWriter(mem, p.pfns, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s at open: %v", name, err)
		}
	}
	// An index that moves backwards over unread packets claims a nearly full
	// ring; the zeros found there are no packet.
	p := newPair(t, mem, contiguous(2), 0)
	poke(mem, p.pfns, offWrite, 64)
	poke(mem, p.pfns, offRead, 64)
	r, err := NewReader(mem, p.pfns, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.hdr.write.Store(56)
	latched(t, "backwards", r)
}

// A read index must come from between the last one and what was published.
// Rows 48 and 49: anything else would be taken for a huge free space.
func TestRegressRow49_ReadIndexCreditUnderflow(t *testing.T) {
	mem := newMemory(t)
	for name, x := range map[string]uint32{
		"size": 4096, "unaligned": 12, "2^32-8": 0xFFFFFFF8, "ahead of the writer": 2048, "behind itself": 8,
	} {
		p := newPair(t, mem, contiguous(2), 0)
		for range 3 { // the peer reads 16 of 24·3
			if err := p.w.Write(inBand(0, nil)); err != nil {
				t.Fatal(err)
			}
		}
		p.w.hdr.read.Store(24)
		if err := p.w.Put(inBand(0, make([]byte, 4000))); err != nil && err != ErrFull {
			t.Fatalf("%s: %v", name, err)
		}
		p.w.hdr.read.Store(x)
		_, err := p.w.Await(inBand(0, make([]byte, 4000)))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p.w.hdr.read.Store(24)
		if err := p.w.Put(inBand(0, nil)); !errors.Is(err, ErrCorrupt) || p.w.Err() == nil {
			t.Errorf("%s: not latched: %v", name, err)
		}
		if err := p.w.Publish(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: published on a corrupt ring: %v", name, err)
		}
	}
}

// raw lays a descriptor into the ring and publishes units·8+8 bytes.
func (p *pair) raw(t *testing.T, d proto.Descriptor, tail []byte, published uint32) {
	t.Helper()
	a, _ := guest.PageGPA(p.pfns[1])
	if err := p.mem.WriteAt(append(d.Append(nil), tail...), a); err != nil {
		t.Fatal(err)
	}
	p.r.hdr.write.Store(published)
}

func TestDescriptorClasses(t *testing.T) {
	mem := newMemory(t)
	words := func(w ...uint32) (b []byte) {
		for _, x := range w {
			b = binary.LittleEndian.AppendUint32(b, x)
		}
		return b
	}
	for name, c := range map[string]struct {
		d         proto.Descriptor
		tail      []byte
		published uint32
	}{
		"type 0":                   {proto.Descriptor{Type: 0, Offset8: 2, Length8: 2}, nil, 24},
		"GPADL transfer":           {proto.Descriptor{Type: 8, Offset8: 2, Length8: 2}, nil, 24},
		"additional packets":       {proto.Descriptor{Type: 0xC, Offset8: 2, Length8: 2}, nil, 24},
		"type 65535":               {proto.Descriptor{Type: 0xFFFF, Offset8: 2, Length8: 2}, nil, 24},
		"unknown flag":             {proto.Descriptor{Type: 6, Offset8: 2, Length8: 2, Flags: 2}, nil, 24},
		"payload in descriptor":    {proto.Descriptor{Type: 6, Offset8: 1, Length8: 2}, nil, 24},
		"offset 0":                 {proto.Descriptor{Type: 6, Offset8: 0, Length8: 2}, nil, 24},
		"length 0":                 {proto.Descriptor{Type: 6, Offset8: 2, Length8: 0}, nil, 24},
		"length under offset":      {proto.Descriptor{Type: 6, Offset8: 5, Length8: 4}, nil, 64},
		"length past index":        {proto.Descriptor{Type: 6, Offset8: 2, Length8: 4}, nil, 32},
		"length past ring":         {proto.Descriptor{Type: 6, Offset8: 2, Length8: 600}, nil, 4088},
		"length 65535":             {proto.Descriptor{Type: 6, Offset8: 2, Length8: 0xFFFF}, nil, 4088},
		"half a descriptor":        {proto.Descriptor{Type: 6, Offset8: 2, Length8: 2}, nil, 8},
		"GPA-direct no header":     {proto.Descriptor{Type: 9, Offset8: 2, Length8: 2}, nil, 24},
		"transfer no header":       {proto.Descriptor{Type: 7, Offset8: 2, Length8: 2}, nil, 24},
		"GPA-direct count 1 of 0":  {proto.Descriptor{Type: 9, Offset8: 3, Length8: 3}, words(0, 1), 32},
		"GPA-direct count 2^32-1":  {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 0xFFFFFFFF, 4096, 0, 1, 0), 48},
		"GPA-direct no pages":      {proto.Descriptor{Type: 9, Offset8: 4, Length8: 4}, words(0, 1, 4096, 0), 40},
		"GPA-direct page missing":  {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 1, 4097, 0, 1, 0), 48},
		"GPA-direct 4 GiB":         {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 1, 0xFFFFFFFF, 4095, 1, 0), 48},
		"GPA-direct empty range":   {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 1, 0, 0, 1, 0), 48},
		"GPA-direct offset 4096":   {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 1, 1, 4096, 1, 0), 48},
		"GPA-direct offset -1":     {proto.Descriptor{Type: 9, Offset8: 5, Length8: 5}, words(0, 1, 1, 0xFFFFFFFF, 1, 0), 48},
		"GPA-direct second cut":    {proto.Descriptor{Type: 9, Offset8: 7, Length8: 7}, words(0, 2, 8192, 0, 1, 0, 2, 0, 1, 0), 64},
		"GPA-direct second no hdr": {proto.Descriptor{Type: 9, Offset8: 7, Length8: 7}, words(0, 2, 12288, 0, 1, 0, 2, 0, 3, 0), 64},
		"transfer count 1 of 0":    {proto.Descriptor{Type: 7, Offset8: 3, Length8: 3}, words(0, 1), 32},
		"transfer count 2^32-1":    {proto.Descriptor{Type: 7, Offset8: 4, Length8: 4}, words(0, 0xFFFFFFFF, 1, 1), 40},
	} {
		p := newPair(t, mem, contiguous(2), 0)
		p.raw(t, c.d, c.tail, c.published)
		latched(t, name, p.r)
	}
}

// The trailer belongs to the packet: one whose last 8 bytes are not published
// yet is not there, or the next packet would be read from stale bytes.
func TestRegressRow18_TrailerPastWriteIndex(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	p.raw(t, proto.Descriptor{Type: 6, Offset8: 2, Length8: 4}, make([]byte, 16), 32)
	latched(t, "trailer", p.r)
	p = newPair(t, mem, contiguous(2), 0)
	p.raw(t, proto.Descriptor{Type: 6, Offset8: 2, Length8: 4}, make([]byte, 16), 40)
	var q Packet
	if ok, err := p.r.Next(&q); !ok || err != nil {
		t.Errorf("whole packet: %v %v", ok, err)
	}
}

// Row 48: the producer index claims more packets than it wrote. Each is handed
// out once; stale bytes behind are not handed out as the old packets again.
func TestRegressRow48_IndexClaimsMoreThanWritten(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	var q Packet
	for i := range uint64(3) {
		if err := p.w.Write(inBand(i, nil)); err != nil {
			t.Fatal(err)
		}
	}
	p.r.hdr.write.Store(4096 - 24)
	for i := range uint64(3) {
		if ok, err := p.r.Next(&q); !ok || err != nil || q.TransactionID != i {
			t.Fatalf("packet %d: %v %v %d", i, ok, err, q.TransactionID)
		}
	}
	latched(t, "zeros after the last packet", p.r)
}

// Row 15 (and 42): a malformed packet is looked at once. The latch answers
// afterwards, without a look at the ring.
func TestRegressRow15_MalformedPacketIsNotRetried(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	p.raw(t, proto.Descriptor{Type: 77, Offset8: 2, Length8: 2}, nil, 24)
	latched(t, "type", p.r)
	var q Packet
	p.raw(t, proto.Descriptor{Type: 6, Offset8: 2, Length8: 2}, nil, 24)
	for range 1000 {
		if ok, err := p.r.Next(&q); ok || err == nil {
			t.Fatal("the latch opened")
		}
	}
	if got := p.r.hdr.read.Load(); got != 0 {
		t.Errorf("read index moved to %d over a malformed packet", got)
	}
}

// Rows 24 and 45: bytes that the Reader has copied are not fetched again,
// neither for packets later in the batch nor for the rest of one that was cut
// by the batch.
func TestRegressRow24_EachByteIsFetchedOnce(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(30), 17<<10)
	var want [][]byte
	for i := range 12 {
		b := bytes.Repeat([]byte{byte(i + 1)}, 3000)
		want = append(want, b)
		if err := p.w.Put(inBand(uint64(i), b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.w.Publish(); err != nil {
		t.Fatal(err)
	}
	var q Packet
	for i, b := range want {
		if ok, err := p.r.Next(&q); !ok || err != nil || q.TransactionID != uint64(i) || !bytes.Equal(q.Payload, b) {
			t.Fatalf("packet %d: %v %v id %d", i, ok, err, q.TransactionID)
		}
		// Everything up to here is private by now. Overwrite it behind the
		// Reader's back, descriptors, payloads and trailers alike.
		junk := bytes.Repeat([]byte{0xEE}, int(p.r.fetched))
		if err := p.w.writeAt(junk, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// Row 30: what is sent is all the sender's: padding, trailer and reserved
// fields are written, whatever the ring held before.
func TestRegressRow30_PaddingIsZeroed(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(3), 0)
	if err := p.w.writeAt(bytes.Repeat([]byte{0xAA}, 8192), 0); err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, q := range []*Packet{
		inBand(1, []byte{1}), inBand(2, nil), inBand(3, make([]byte, 5000-3)),
		{Type: proto.PacketGPADirect, Ranges: []guest.PageRange{{ByteCount: 1, PFNs: []uint64{1}}}, Payload: []byte{1, 2, 3, 4, 5}},
		{Type: proto.PacketTransferPages, Transfers: make([]proto.TransferRange, 1), Payload: []byte{1}},
	} {
		if err := p.w.Write(q); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		n += q.Size()
	}
	got := make([]byte, n)
	if err := p.w.readAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexByte(got, 0xAA); i >= 0 {
		t.Errorf("byte %d of %d is what the ring held before", i, n)
	}
}

// A packet larger than the reader takes ends the ring even if it is whole.
func TestMaxPacket(t *testing.T) {
	mem := newMemory(t)
	for n, good := range map[int]bool{88: true, 89: false, 2000: false} {
		p := newPair(t, mem, contiguous(2), 104)
		if err := p.w.Write(inBand(1, make([]byte, n))); err != nil {
			t.Fatal(err)
		}
		var q Packet
		if ok, err := p.r.Next(&q); ok != good || errors.Is(err, ErrCorrupt) == good {
			t.Errorf("payload of %d bytes: %v %v", n, ok, err)
		}
	}
}

func FuzzPacket(f *testing.F) {
	add := func(p *Packet) {
		f.Add(append(append(p.appendHead(nil), p.Payload...), zeros[:-len(p.Payload)&7]...))
	}
	add(inBand(1, []byte("hello")))
	add(&Packet{Type: proto.PacketGPADirect, Flags: 1, Ranges: []guest.PageRange{{ByteOffset: 9, ByteCount: 8192, PFNs: []uint64{1, 2, 3}}, {ByteCount: 1, PFNs: []uint64{7}}}, Payload: make([]byte, 64)})
	add(&Packet{Type: proto.PacketTransferPages, Transfers: make([]proto.TransferRange, 3), Payload: make([]byte, 40)})
	add(&Packet{Type: proto.PacketCompletion, TransactionID: proto.TransactionReset, Payload: make([]byte, 8)})
	var s scratch
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < proto.DescriptorSize {
			return
		}
		d := proto.DecodeDescriptor(b)
		if checkDescriptor(d) != nil || 8*int(d.Length8) > len(b) {
			return
		}
		b = b[:8*int(d.Length8)]
		var p Packet
		if s.parse(&p, d, b) != nil {
			return
		}
		pages := 0
		for _, r := range p.Ranges {
			if !r.Valid() {
				t.Fatalf("range %+v", r)
			}
			pages += len(r.PFNs)
		}
		if n := p.headSize() + len(p.Payload); n > len(b) || pages > len(b)/8 {
			t.Fatalf("%d bytes became %d, %d pages", len(b), n, pages)
		}
		// What was parsed, sent again, parses to the same.
		again := append(p.appendHead(nil), p.Payload...)
		var q Packet
		var s2 scratch
		if err := s2.parse(&q, proto.DecodeDescriptor(again), again); err != nil {
			t.Fatal(err)
		}
		if err := equal(&p, &q); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRing gives a Reader and a Writer a ring whose bytes and header the
// fuzzer chose, and changes the header under them between steps.
func FuzzRing(f *testing.F) {
	mem, err := guest.New(guest.Region{Base: 0, Size: 8 * guest.PageSize})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { mem.Close() })
	pfns := []uint64{1, 3, 2}
	good := inBand(1, []byte("payload.")).appendHead(nil)
	good = append(good, "payload.\x00\x00\x00\x00\x00\x00\x00\x00"...)
	f.Add(uint32(0), uint32(0), good, []byte{0, 32, 0, 0, 0})
	f.Add(uint32(8184), uint32(8184), good, []byte{0, 24, 0, 0, 0, 3, 0, 0, 0, 0})
	f.Add(uint32(8), uint32(0), []byte{6, 0, 2, 0, 2, 0}, []byte{1, 8, 0, 0, 0, 2, 255, 255, 255, 255, 4, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, write, read uint32, data, steps []byte) {
		if err := Format(mem, pfns); err != nil {
			t.Fatal(err)
		}
		poke(mem, pfns, offWrite, write)
		poke(mem, pfns, offRead, read)
		d, _, _ := open(mem, pfns)
		if len(data) > 0 {
			d.writeAt(bytes.Repeat(data, int(d.size)/len(data)+1)[:d.size], 0)
		}
		signals, moves := 0, 0
		r, errR := NewReader(mem, pfns, 4096, func() { signals++ })
		w, errW := NewWriter(mem, pfns, func() { signals++ })
		if (errR == nil) != (errW == nil) {
			t.Fatalf("one end accepts what the other refuses: %v, %v", errR, errW)
		}
		if errR != nil {
			return
		}
		var q Packet
		budget := int(d.size) // a ring of so many bytes holds fewer packets
		for ; len(steps) >= 5; steps = steps[5:] {
			x := binary.LittleEndian.Uint32(steps[1:])
			switch steps[0] % 6 {
			case 0:
				poke(mem, pfns, offWrite, x)
			case 1:
				poke(mem, pfns, offRead, x)
			case 2:
				poke(mem, pfns, offPending, x)
			case 3:
				poke(mem, pfns, offMask, x)
			case 4:
				p := inBand(uint64(x), make([]byte, x%5000))
				moves++
				if w.Write(p) == ErrFull {
					w.Await(p)
				}
			case 5:
				r.Unmask()
			}
			for n := 0; ; n++ {
				ok, err := r.Next(&q)
				if err != nil && !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error of another kind: %v", err)
				}
				moves++
				if !ok {
					break
				}
				if q.Size() > 4096+8 || n > budget {
					t.Fatalf("packet %d of %d bytes", n, q.Size())
				}
			}
			r.Commit()
		}
		// A signal needs a publication of ours: at most one per packet, write or step.
		if signals > moves {
			t.Fatalf("%d signals for %d index moves", signals, moves)
		}
	})
}
