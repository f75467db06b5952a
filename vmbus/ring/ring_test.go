package ring

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmbus/proto"
	"pgregory.net/rapid"
)

// newMemory returns RAM with a hole, so that pages of a ring lie in two
// regions.
func newMemory(t testing.TB) *guest.Memory {
	t.Helper()
	m, err := guest.New(guest.Region{Base: 0, Size: 64 * guest.PageSize}, guest.Region{Base: 1 << 32, Size: 64 * guest.PageSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Page lists: adjacent, backwards, and alternating between the two regions.
func contiguous(n int) (p []uint64) {
	for i := range uint64(n) {
		p = append(p, 1+i)
	}
	return p
}

func scattered(n int) (p []uint64) {
	for i := range uint64(n) {
		switch i % 4 {
		case 0, 1:
			p = append(p, 1<<20+i)
		case 2:
			p = append(p, 60-i)
		case 3:
			p = append(p, 1<<20+60-i)
		}
	}
	return p
}

// pair is both ends of one ring and the number of signals each was told of.
type pair struct {
	mem            *guest.Memory
	pfns           []uint64
	w              *Writer
	r              *Reader
	toReader, room int
}

func newPair(t testing.TB, mem *guest.Memory, pfns []uint64, maxPacket int) *pair {
	t.Helper()
	p := &pair{mem: mem, pfns: pfns}
	if err := Format(mem, pfns); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.w, err = NewWriter(mem, pfns, func() { p.toReader++ }); err != nil {
		t.Fatal(err)
	}
	if p.r, err = NewReader(mem, pfns, maxPacket, func() { p.room++ }); err != nil {
		t.Fatal(err)
	}
	return p
}

// poke stores x to a header word.
func poke(mem *guest.Memory, pfns []uint64, off guest.GPA, x uint32) {
	a, _ := guest.PageGPA(pfns[0])
	w, err := mem.Word(a + off)
	if err != nil {
		panic(err)
	}
	w.Store(x)
}

func inBand(id uint64, payload []byte) *Packet {
	return &Packet{Type: proto.PacketInBand, TransactionID: id, Payload: payload}
}

// equal compares a received packet with the sent one: the payload may have
// grown by zeros up to a multiple of 8.
func equal(sent, got *Packet) error {
	pad := len(got.Payload) - len(sent.Payload)
	if pad < 0 || pad > 7 || len(got.Payload)%8 != 0 || !bytes.Equal(got.Payload[:len(sent.Payload)], sent.Payload) {
		return fmt.Errorf("payload of %d bytes became %d, or other ones", len(sent.Payload), len(got.Payload))
	}
	for _, b := range got.Payload[len(sent.Payload):] {
		if b != 0 {
			return errors.New("padding is not zero")
		}
	}
	if d := cmp.Diff(sent, got, cmpopts.IgnoreFields(Packet{}, "Payload"), cmpopts.EquateEmpty()); d != "" {
		return errors.New(d)
	}
	return nil
}

// drawPacket draws any packet that fits into a ring of size bytes.
func drawPacket(t *rapid.T, size uint32) *Packet {
	p := &Packet{
		Type:          rapid.SampledFrom([]proto.PacketType{proto.PacketInBand, proto.PacketCompletion, proto.PacketGPADirect, proto.PacketTransferPages}).Draw(t, "type"),
		Flags:         rapid.Uint16Range(0, 1).Draw(t, "flags"),
		TransactionID: rapid.Uint64().Draw(t, "id"),
	}
	switch p.Type {
	case proto.PacketGPADirect:
		for i := range rapid.IntRange(0, 5).Draw(t, "ranges") {
			r := guest.PageRange{ByteOffset: rapid.Uint32Range(0, 4095).Draw(t, "off"), ByteCount: rapid.Uint32Range(1, 40000).Draw(t, "count")}
			for j := range guest.PagesFor(r.ByteOffset, r.ByteCount) {
				r.PFNs = append(r.PFNs, uint64(i)<<32+j)
			}
			p.Ranges = append(p.Ranges, r)
		}
	case proto.PacketTransferPages:
		p.TransferSet, p.SenderOwns = rapid.Uint16().Draw(t, "set"), rapid.Bool().Draw(t, "owns")
		for range rapid.IntRange(0, 20).Draw(t, "transfers") {
			p.Transfers = append(p.Transfers, proto.TransferRange{ByteCount: rapid.Uint32().Draw(t, "n"), ByteOffset: rapid.Uint32().Draw(t, "o")})
		}
	}
	room := int(size) - 16 - p.headSize()
	n := rapid.OneOf(rapid.IntRange(0, min(80, room)), rapid.IntRange(0, room)).Draw(t, "payload")
	p.Payload = make([]byte, n)
	rnd := rand.New(rand.NewPCG(uint64(n), p.TransactionID))
	for i := range p.Payload {
		p.Payload[i] = byte(rnd.Uint32())
	}
	return p
}

// Any packets in any order, with the reader stalling at will, arrive whole, in
// order and once, whatever the start index and the layout of the pages; and
// whoever has to wait is signalled when its wait is over.
func TestRingFIFO(t *testing.T) {
	mem := newMemory(t)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 9).Draw(t, "pages")
		pfns := contiguous(n)
		if rapid.Bool().Draw(t, "scattered") {
			pfns = scattered(n)
		}
		size := uint32(n-1) * guest.PageSize
		if err := Format(mem, pfns); err != nil {
			t.Fatal(err)
		}
		start := rapid.Uint32Range(0, size/8-1).Draw(t, "start") * 8
		poke(mem, pfns, offWrite, start)
		poke(mem, pfns, offRead, start)
		data, room := false, false
		w, err := NewWriter(mem, pfns, func() { data = true })
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(mem, pfns, int(size), func() { room = true })
		if err != nil {
			t.Fatal(err)
		}
		// The reader sleeps (unmasked, saw it empty) or not; the writer waits or not.
		var sent []*Packet
		var waiting *Packet
		asleep, unpublished := true, 0
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				if waiting != nil {
					t.Skip("writer waits")
				}
				p := drawPacket(t, size)
				switch err := w.Put(p); err {
				case nil:
					sent = append(sent, p)
					unpublished++
				case ErrFull:
					if err := w.Publish(); err != nil {
						t.Fatal(err)
					}
					unpublished = 0
					fits, err := w.Await(p)
					if err != nil {
						t.Fatal(err)
					}
					if !fits {
						waiting, room = p, false
					}
				default:
					t.Fatal(err)
				}
			},
			"publish": func(t *rapid.T) {
				if err := w.Publish(); err != nil {
					t.Fatal(err)
				}
				unpublished = 0
			},
			"read": func(t *rapid.T) {
				if asleep && !data {
					t.Skip("reader sleeps")
				}
				asleep, data = false, false
				r.Mask()
				for range rapid.IntRange(1, 8).Draw(t, "n") {
					var got Packet
					ok, err := r.Next(&got)
					if err != nil {
						t.Fatal(err)
					}
					if !ok {
						more, err := r.Unmask()
						if err != nil {
							t.Fatal(err)
						}
						asleep = !more
						break
					}
					if len(sent) == 0 {
						t.Fatal("a packet nobody sent")
					}
					if err := equal(sent[0], &got); err != nil {
						t.Fatal(err)
					}
					sent = sent[1:]
				}
			},
			"": func(t *rapid.T) {
				if asleep && !data && len(sent) > unpublished {
					t.Fatalf("reader sleeps without a signal before %d packets", len(sent)-unpublished)
				}
				if waiting == nil {
					return
				}
				if room {
					if err := w.Put(waiting); err != nil {
						t.Fatalf("signalled, but no room: %v", err)
					}
					sent = append(sent, waiting)
					waiting = nil
					unpublished++
				} else if asleep && len(sent) == 0 {
					t.Fatalf("the ring is drained and the writer of %d of %d bytes was not told", waiting.Size(), size)
				}
			},
		})
	})
}

// Golden bytes of three packets as Linux's drivers would read them.
func TestGoldenPackets(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(3), 0)
	for _, q := range []*Packet{
		{Type: proto.PacketInBand, Flags: 1, TransactionID: 0x1122334455667788, Payload: []byte{1, 2, 3}},
		{Type: proto.PacketTransferPages, TransactionID: 5, TransferSet: 0xCAFE, Transfers: []proto.TransferRange{{ByteCount: 60, ByteOffset: 1806}}, Payload: []byte("RNDISMSG")},
		{Type: proto.PacketGPADirect, Flags: 1, TransactionID: 9, Ranges: []guest.PageRange{{ByteOffset: 0xE00, ByteCount: 0x400, PFNs: []uint64{0x10, 0x11}}}, Payload: []byte("VSTORPKT")},
	} {
		if err := p.w.Write(q); err != nil {
			t.Fatal(err)
		}
	}
	want := "0600" + "0200" + "0300" + "0100" + "8877665544332211" + "0102030000000000" + "0000000000000000" +
		"0700" + "0400" + "0500" + "0000" + "0500000000000000" + "feca0000" + "01000000" + "3c000000" + "0e070000" + "524e4449534d5347" + "0000000020000000" +
		"0900" + "0600" + "0700" + "0100" + "0900000000000000" + "00000000" + "01000000" + "00040000" + "000e0000" +
		"1000000000000000" + "1100000000000000" + "5653544f52504b54" + "0000000050000000"
	got := make([]byte, len(want)/2)
	if err := mem.ReadAt(got, 2*guest.PageSize); err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != want {
		t.Errorf("ring\n%x\nwant\n%s", got, want)
	}
	head := make([]byte, 72)
	mem.ReadAt(head, guest.PageSize)
	if w := binary.LittleEndian.Uint32(head); w != uint32(len(got)) {
		t.Errorf("write index %d, want %d", w, len(got))
	}
	if f := binary.LittleEndian.Uint32(head[64:]); f != 1 {
		t.Errorf("feature bits %#x", f)
	}
}

// The signalling rules, one by one.
func TestSignals(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	var q Packet
	write := func() {
		t.Helper()
		if err := p.w.Write(inBand(1, make([]byte, 8))); err != nil {
			t.Fatal(err)
		}
	}
	write() // empty to non-empty
	if p.toReader != 1 {
		t.Fatalf("%d signals for the first packet", p.toReader)
	}
	write() // non-empty already
	if p.toReader != 1 {
		t.Fatalf("%d signals for the second packet", p.toReader)
	}
	p.r.Mask()
	for range 2 {
		if ok, err := p.r.Next(&q); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	p.r.Commit()
	write() // empty to non-empty, but masked
	if p.toReader != 1 {
		t.Fatalf("%d signals while masked", p.toReader)
	}
	if more, err := p.r.Unmask(); !more || err != nil {
		t.Fatalf("unmask missed the packet: %v %v", more, err)
	}
	if ok, _ := p.r.Next(&q); !ok {
		t.Fatal("no packet after unmask")
	}
	if ok, _ := p.r.Next(&q); ok {
		t.Fatal("a packet too many")
	}
	if more, err := p.r.Unmask(); more || err != nil {
		t.Fatal(more, err)
	}
	// Two packets put and published at once need one signal.
	for range 2 {
		if err := p.w.Put(inBand(1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if p.w.Unread() {
		t.Error("unread before anything was published")
	}
	p.w.Publish()
	p.w.Publish()
	if p.toReader != 2 {
		t.Fatalf("%d signals", p.toReader)
	}
	if !p.w.Unread() {
		t.Error("nothing unread")
	}
	p.r.Mask()
	if p.w.Unread() {
		t.Error("unread while the peer masks signals")
	}
	if p.room != 0 {
		t.Errorf("%d signals to a writer that did not wait", p.room)
	}
}

// A writer that waits is told at the crossing: not before, not again after,
// and a mask does not matter.
func TestPendingSendCrossing(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	p.r.Mask()
	small := inBand(1, make([]byte, 40)) // 64 bytes each, 63 of them fit
	n := 0
	for ; p.w.Write(small) == nil; n++ {
	}
	if n != 63 {
		t.Fatalf("%d packets fit", n)
	}
	big := inBand(2, make([]byte, 1000)) // 1024 bytes
	if ok, err := p.w.Await(big); ok || err != nil {
		t.Fatal(ok, err)
	}
	var q Packet
	for i := 1; i <= n; i++ {
		if ok, err := p.r.Next(&q); !ok || err != nil {
			t.Fatal(ok, err)
		}
		p.r.Commit()
		free := 4096 - 64*(n-i)
		if want := free >= 1032; want != (p.room > 0) {
			t.Fatalf("%d bytes free: %d signals", free, p.room)
		}
		if p.room == 1 && p.w.Put(big) != nil {
			t.Fatalf("signalled at %d bytes, no room", free)
		}
		if p.room == 1 {
			break
		}
	}
	if p.w.Publish(); p.room != 1 {
		t.Fatalf("%d signals", p.room)
	}
	for ok := true; ok; ok, _ = p.r.Next(&q) {
	}
	if p.room != 1 {
		t.Errorf("%d signals after the wait was over", p.room)
	}
}

// A guest that asks for one byte less than the ring gets its signal when the
// ring is empty (pending_send_sz is rounded down to a multiple of 8).
func TestPendingSendIsMasked(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	if err := p.w.Write(inBand(1, nil)); err != nil {
		t.Fatal(err)
	}
	p.w.hdr.pending.Store(4095)
	var q Packet
	for ok := true; ok; ok, _ = p.r.Next(&q) {
	}
	if p.room != 1 {
		t.Errorf("%d signals", p.room)
	}
}

// The permanent request of Linux's hv_sock: every upward crossing signals.
func TestPendingSendPermanent(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(3), 0)
	for i := range 5 {
		for p.w.Write(inBand(1, make([]byte, 1000))) == nil {
		}
		p.w.hdr.pending.Store(4120)
		var q Packet
		for ok := true; ok; ok, _ = p.r.Next(&q) {
			p.r.Commit()
		}
		if p.room != i+1 {
			t.Fatalf("round %d: %d signals", i, p.room)
		}
	}
}

func TestSizes(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	if err := p.w.Put(inBand(1, make([]byte, 4096-24))); !errors.Is(err, ErrTooBig) {
		t.Errorf("a packet of the whole ring: %v", err)
	}
	if err := p.w.Write(inBand(1, make([]byte, 4096-32))); err != nil {
		t.Errorf("the largest packet: %v", err)
	}
	if err := p.w.Put(inBand(1, nil)); err != ErrFull {
		t.Errorf("into a full ring: %v", err)
	}
	if ok, err := p.w.Await(inBand(1, nil)); ok || err != nil {
		t.Error(ok, err)
	}
	p.w.Cancel()
	if v := p.w.hdr.pending.Load(); v != 0 {
		t.Errorf("pending_send_sz %d after Cancel", v)
	}
	var q Packet
	if ok, err := p.r.Next(&q); !ok || err != nil || len(q.Payload) != 4096-32 {
		t.Error(ok, err, len(q.Payload))
	}
	for _, n := range []int{0, 1, MaxPages + 1} {
		if _, err := NewReader(mem, make([]uint64, n), 0, nil); err == nil {
			t.Errorf("a ring of %d pages", n)
		}
	}
	if _, err := NewWriter(mem, []uint64{1, 70}, nil); !errors.Is(err, guest.ErrRange) {
		t.Errorf("a ring outside RAM: %v", err)
	}
	if err := Format(mem, []uint64{1 << 60, 1}); !errors.Is(err, guest.ErrRange) {
		t.Errorf("a ring outside 64 bits: %v", err)
	}
	big := inBand(1, make([]byte, 1<<20))
	if q := newPair(t, mem, contiguous(60), 0); !errors.Is(q.w.Put(big), ErrTooBig) {
		t.Error("1 MiB packet")
	}
}

// Packets beyond what a descriptor can count are refused even by huge rings.
func TestTooBigForDescriptor(t *testing.T) {
	mem, err := guest.New(guest.Region{Base: 0, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	p := newPair(t, mem, contiguous(200), 8*maxUnits)
	if err := p.w.Put(inBand(1, make([]byte, 8*maxUnits-16+1))); !errors.Is(err, ErrTooBig) {
		t.Error(err)
	}
	if err := p.w.Write(inBand(1, make([]byte, 8*maxUnits-16))); err != nil {
		t.Error(err)
	}
	var q Packet
	if ok, err := p.r.Next(&q); !ok || err != nil || len(q.Payload) != 8*maxUnits-16 {
		t.Error(ok, err, len(q.Payload))
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, scattered(8), 0)
	out := &Packet{Type: proto.PacketGPADirect, Payload: make([]byte, 64), Ranges: []guest.PageRange{{ByteCount: 8192, PFNs: []uint64{1, 2}}}}
	xfer := &Packet{Type: proto.PacketTransferPages, Payload: make([]byte, 5000), Transfers: make([]proto.TransferRange, 9)}
	var q Packet
	step := func() {
		if p.w.Put(out) != nil || p.w.Put(xfer) != nil || p.w.Publish() != nil {
			panic("no room")
		}
		for range 2 {
			if ok, err := p.r.Next(&q); !ok || err != nil {
				panic(fmt.Sprint(ok, err))
			}
		}
		if ok, _ := p.r.Next(&q); ok {
			panic("a packet too many")
		}
	}
	step()
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per packet pair", n)
	}
}

// Row 28: every transaction id is legal, those of unsolicited packets and of
// Linux's special requests among them.
func TestRegressRow28_AnyTransactionID(t *testing.T) {
	mem := newMemory(t)
	p := newPair(t, mem, contiguous(2), 0)
	for _, id := range []uint64{proto.TransactionNone, 1, 1 << 63, proto.TransactionReset, proto.TransactionNoResponse, proto.TransactionError, proto.TransactionNoRequestor} {
		for _, typ := range []proto.PacketType{proto.PacketInBand, proto.PacketCompletion} {
			if err := p.w.Write(&Packet{Type: typ, TransactionID: id}); err != nil {
				t.Fatal(err)
			}
			var q Packet
			if ok, err := p.r.Next(&q); !ok || err != nil || q.TransactionID != id || q.Type != typ || q.WantsCompletion() {
				t.Errorf("%v packet %#x: %v %v %+v", typ, id, ok, err, q)
			}
		}
	}
}
