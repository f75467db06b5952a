package synic_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// refuse is a MessagePort that answers the same always.
type refuse hv.Status

func (r refuse) HandleMessage(hv.Message) hv.Status { return hv.Status(r) }

// inbox is a MessagePort that keeps up to limit messages.
type inbox struct {
	mu    sync.Mutex
	limit int
	got   []hv.Message
}

func (i *inbox) HandleMessage(m hv.Message) hv.Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.got) >= i.limit {
		return hv.StatusInsufficientBuffers
	}
	i.got = append(i.got, m)
	return hv.StatusSuccess
}

func TestPostMessage(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	box := &inbox{limit: 2}
	if err := g.Partition.ConnectMessage(0x42, box); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{0xA5}, hv.MaxPayload)
	for _, n := range []int{0, hv.MaxPayload} {
		if st := v.PostMessage(0x42, 7, payload[:n]); st != hv.StatusSuccess {
			t.Fatalf("%d bytes: %v", n, st)
		}
	}
	for i, n := range []int{0, hv.MaxPayload} {
		m := box.got[i]
		if m.Type != 7 || !bytes.Equal(m.Bytes(), payload[:n]) || m.Origin != 0x42 {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	if st := v.PostMessage(0x42, 7, nil); st != hv.StatusInsufficientBuffers {
		t.Errorf("full: %v", st)
	}
}

// Only PayloadSize bytes go to the port, whatever follows them.
func TestPostMessageTail(t *testing.T) {
	g := synictest.New(t, 1, nil)
	box := &inbox{limit: 1}
	if err := g.Partition.ConnectMessage(1, box); err != nil {
		t.Fatal(err)
	}
	in := hv.PostMessageInput{ConnectionID: 1, MessageType: 1, PayloadSize: 3, Payload: [240]byte{1, 2, 3, 4, 5}}
	if st := g.VPs[0].PostInput(&in); st != hv.StatusSuccess {
		t.Fatal(st)
	}
	if m := box.got[0]; m.Size != 3 || m.Payload != [240]byte{1, 2, 3} {
		t.Errorf("message %v", m.Payload[:8])
	}
}

// The rows of the tables of return values that a host's port can bring about;
// where two apply, the first in the documented order wins.
func TestPostMessageStatus(t *testing.T) {
	g := synictest.New(t, 1, nil)
	p, v := g.Partition, g.VPs[0]
	for id, st := range map[hv.ConnectionID]hv.Status{0: 0, 1: hv.StatusInsufficientBuffers, 2: hv.StatusInsufficientMemory, hv.IDMask: 0} {
		if err := p.ConnectMessage(id, refuse(st)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.ConnectEvent(3, 4, &countingEvents{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   hv.PostMessageInput
		want hv.Status
	}{
		"success":            {hv.PostMessageInput{ConnectionID: 0, MessageType: 1}, 0},
		"largest id":         {hv.PostMessageInput{ConnectionID: hv.IDMask, MessageType: 1}, 0},
		"largest type":       {hv.PostMessageInput{MessageType: 0x7FFFFFFF, PayloadSize: 240}, 0},
		"type 0":             {hv.PostMessageInput{MessageType: 0}, hv.StatusInvalidParameter},
		"type with MSB":      {hv.PostMessageInput{MessageType: 1 << 31}, hv.StatusInvalidParameter},
		"timer's type":       {hv.PostMessageInput{MessageType: hv.MessageTimerExpired}, hv.StatusInvalidParameter},
		"241 bytes":          {hv.PostMessageInput{MessageType: 1, PayloadSize: 241}, hv.StatusInvalidParameter},
		"256 bytes":          {hv.PostMessageInput{MessageType: 1, PayloadSize: 256}, hv.StatusInvalidParameter},
		"2^32-1 bytes":       {hv.PostMessageInput{MessageType: 1, PayloadSize: 1<<32 - 1}, hv.StatusInvalidParameter},
		"reserved":           {hv.PostMessageInput{MessageType: 1, Reserved: 1}, hv.StatusInvalidParameter},
		"unknown id":         {hv.PostMessageInput{ConnectionID: 9, MessageType: 1}, hv.StatusInvalidConnectionID},
		"id over 24 bits":    {hv.PostMessageInput{ConnectionID: 1 << 24, MessageType: 1}, hv.StatusInvalidConnectionID},
		"id and parameter":   {hv.PostMessageInput{ConnectionID: 9, MessageType: 0}, hv.StatusInvalidConnectionID},
		"event port":         {hv.PostMessageInput{ConnectionID: 3, MessageType: 1}, hv.StatusInvalidPortID},
		"port and parameter": {hv.PostMessageInput{ConnectionID: 3, MessageType: 0}, hv.StatusInvalidPortID},
		"no buffer":          {hv.PostMessageInput{ConnectionID: 1, MessageType: 1}, hv.StatusInsufficientBuffers},
		"parameter first":    {hv.PostMessageInput{ConnectionID: 1, MessageType: 0}, hv.StatusInvalidParameter},
		"port's own":         {hv.PostMessageInput{ConnectionID: 2, MessageType: 1}, hv.StatusInsufficientMemory},
	} {
		if st := v.PostInput(&c.in); st != c.want {
			t.Errorf("%s: %v, want %v", name, st, c.want)
		}
	}
	p.Disconnect(0)
	if st := v.PostMessage(0, 1, nil); st != hv.StatusInvalidConnectionID {
		t.Errorf("disconnected: %v", st)
	}
}

func TestSignalEvent(t *testing.T) {
	g := synictest.New(t, 1, nil)
	p, v := g.Partition, g.VPs[0]
	events := &countingEvents{}
	if err := p.ConnectEvent(5, 3, events); err != nil {
		t.Fatal(err)
	}
	if err := p.ConnectMessage(6, refuse(0)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   uint64
		want hv.Status
	}{
		"first flag":       {0x0000_0000_0000_0005, 0},
		"last flag":        {0x0000_0002_0000_0005, 0},
		"one too many":     {0x0000_0003_0000_0005, hv.StatusInvalidParameter},
		"largest flag":     {0x0000_FFFF_0000_0005, hv.StatusInvalidParameter},
		"reserved":         {0x0001_0000_0000_0005, hv.StatusInvalidParameter},
		"unknown":          {0x0000_0000_0000_0007, hv.StatusInvalidConnectionID},
		"id over 24 bits":  {0x0000_0000_0100_0005, hv.StatusInvalidConnectionID},
		"message port":     {0x0000_0000_0000_0006, hv.StatusInvalidPortID},
		"port before flag": {0xFFFF_FFFF_0000_0006, hv.StatusInvalidPortID},
	} {
		events.flags = nil
		// The second register is not looked at.
		fast := p.Hypercall(0, hv.FastSignalEvent, c.in, ones)
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], c.in)
		a := v.InputPage() + 4088 // as far back as it may be
		if err := g.Memory.WriteAt(b[:], a); err != nil {
			t.Fatal(err)
		}
		slow := p.Hypercall(0, hv.MakeInput(hv.CallSignalEvent, false), uint64(a), ones)
		if fast != hv.MakeResult(c.want, 0) || slow != fast {
			t.Errorf("%s: fast %v, from memory %v, want %v", name, fast.Status(), slow.Status(), c.want)
		}
		if n := len(events.flags); c.want == 0 && n != 2 || c.want != 0 && n != 0 {
			t.Errorf("%s: the port saw %v", name, events.flags)
		}
	}
}

func TestHypercallInput(t *testing.T) {
	g := synictest.New(t, 1, nil)
	p := g.Partition
	page := uint64(g.VPs[0].InputPage())
	post, signal := hv.MakeInput(hv.CallPostMessage, false), hv.FastSignalEvent
	spin, query := hv.MakeInput(hv.CallNotifyLongSpinWait, true), hv.MakeInput(hv.CallExtQueryCapabilities, false)
	for name, c := range map[string]struct {
		in   hv.Input
		a, b uint64
		want hv.Status
	}{
		"code 0":                 {0, 0, 0, hv.StatusInvalidHypercallCode},
		"flush":                  {0x0002, page, 0, hv.StatusInvalidHypercallCode},
		"create port":            {hv.Input(hv.CallCreatePort), page, 0, hv.StatusInvalidHypercallCode},
		"code with all":          {ones, page, 0, hv.StatusInvalidHypercallCode},
		"second extended":        {0x8002, page, page, hv.StatusInvalidHypercallCode},
		"reserved 27":            {signal | 1<<27, 0, 0, hv.StatusInvalidHypercallInput},
		"reserved 30":            {signal | 1<<30, 0, 0, hv.StatusInvalidHypercallInput},
		"nested":                 {signal | hv.InputNested, 0, 0, hv.StatusInvalidHypercallInput},
		"reserved 44":            {signal | 1<<44, 0, 0, hv.StatusInvalidHypercallInput},
		"reserved 63":            {signal | 1<<63, 0, 0, hv.StatusInvalidHypercallInput},
		"rep count":              {signal.WithReps(1, 0), 0, 0, hv.StatusInvalidHypercallInput},
		"rep start":              {signal.WithReps(0, 1), 0, 0, hv.StatusInvalidHypercallInput},
		"variable header":        {signal.WithVarSize(1), 0, 0, hv.StatusInvalidHypercallInput},
		"fast post":              {hv.MakeInput(hv.CallPostMessage, true), 0, 0, hv.StatusInvalidHypercallInput},
		"fast query":             {hv.MakeInput(hv.CallExtQueryCapabilities, true), 0, 0, hv.StatusInvalidHypercallInput},
		"input before alignment": {post.WithReps(1, 0), 1, 0, hv.StatusInvalidHypercallInput},
		"unaligned":              {post, page + 4, 0, hv.StatusInvalidAlignment},
		"unaligned by 1":         {post, page + 1, 0, hv.StatusInvalidAlignment},
		"crosses the page":       {post, page + 4096 - 248, 0, hv.StatusInvalidAlignment},
		"last that fits":         {post, page + 4096 - 256, 0, hv.StatusInvalidConnectionID},
		"outside RAM":            {post, synictest.RAMSize, 0, hv.StatusInvalidAlignment},
		"last page":              {post, synictest.RAMSize - 256, 0, hv.StatusInvalidConnectionID},
		"end of addresses":       {post, ones &^ 7, 0, hv.StatusInvalidAlignment},
		"last page of addresses": {post, ones &^ 4095, 0, hv.StatusInvalidAlignment},
		"output ignored":         {post, page + 2048, 3, hv.StatusInvalidConnectionID},
		"spin":                   {spin, 1234, 0, hv.StatusSuccess},
		"spin, from memory":      {spin &^ hv.InputFast, page, 0, hv.StatusSuccess},
		"spin, unaligned":        {spin &^ hv.InputFast, page + 2, 0, hv.StatusInvalidAlignment},
		"query":                  {query, ones, page, hv.StatusSuccess},
		"query, unaligned":       {query, 0, page + 4, hv.StatusInvalidAlignment},
		"query, outside RAM":     {query, 0, synictest.RAMSize, hv.StatusInvalidAlignment},
	} {
		if r := p.Hypercall(0, c.in, c.a, c.b); r != hv.MakeResult(c.want, 0) {
			t.Errorf("%s: %v, want %v", name, r.Status(), c.want)
		}
	}
}

func TestExtQueryCapabilities(t *testing.T) {
	g := synictest.New(t, 1, nil)
	a := g.VPs[0].InputPage() + 8
	if err := g.Memory.WriteAt(bytes.Repeat([]byte{0xFF}, 24), a-8); err != nil {
		t.Fatal(err)
	}
	g.Partition.Hypercall(0, hv.MakeInput(hv.CallExtQueryCapabilities, false), 0, uint64(a))
	var b [24]byte
	if err := g.Memory.ReadAt(b[:], a-8); err != nil {
		t.Fatal(err)
	}
	want := append(append(bytes.Repeat([]byte{0xFF}, 8), make([]byte, 8)...), bytes.Repeat([]byte{0xFF}, 8)...)
	if !bytes.Equal(b[:], want) {
		t.Errorf("output % x", b)
	}
}

// Access comes before everything that could be wrong with the call.
func TestHypercallPrivileges(t *testing.T) {
	for _, c := range []struct {
		code      hv.HypercallCode
		privilege hv.Privileges
	}{
		{hv.CallPostMessage, hv.PostMessages},
		{hv.CallSignalEvent, hv.SignalEvents},
		{hv.CallExtQueryCapabilities, hv.EnableExtendedHypercalls},
	} {
		g := synictest.New(t, 1, func(cfg *synic.Config) { cfg.Privileges &^= c.privilege })
		for _, in := range []hv.Input{hv.MakeInput(c.code, false), hv.MakeInput(c.code, true), hv.MakeInput(c.code, false).WithReps(3, 4) | 1<<63} {
			if st := g.Partition.Hypercall(0, in, 1, 1).Status(); st != hv.StatusAccessDenied {
				t.Errorf("code %#x without its privilege: %v", uint16(c.code), st)
			}
		}
	}
}

// crashes collects reports.
type crashes []synic.CrashReport

func TestCrash(t *testing.T) {
	var got crashes
	g := synictest.New(t, 2, func(c *synic.Config) { c.OnCrash = func(r synic.CrashReport) { got = append(got, r) } })
	v := g.VPs[1]
	text := []byte("Kernel panic - not syncing\n")
	if err := g.Memory.WriteAt(text, 0x5FF0); err != nil { // over the end of a page
		t.Fatal(err)
	}
	for i := range 5 {
		v.Write(hv.MSRCrashP0+hv.MSR(i), uint64(i+1))
	}
	v.Write(hv.MSRCrashCtl, hv.CrashMessage) // not without notify
	if len(got) != 0 {
		t.Error("a report without CrashNotify")
	}
	v.Write(hv.MSRCrashCtl, hv.CrashNotify)
	v.Write(hv.MSRCrashP0+3, 0x5FF0)
	v.Write(hv.MSRCrashP0+4, uint64(len(text)))
	v.Write(hv.MSRCrashCtl, hv.CrashNotify|hv.CrashMessage)
	if len(got) != 2 {
		t.Fatalf("%d reports", len(got))
	}
	if r := got[0]; r.VP != 1 || r.Params != [5]uint64{1, 2, 3, 4, 5} || r.Message != nil || r.Control != hv.CrashNotify {
		t.Errorf("report %+v", r)
	}
	if r := got[1]; !bytes.Equal(r.Message, text) || r.Params[4] != uint64(len(text)) {
		t.Errorf("report %+v", r)
	}
}
