package proto

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// layout is the specification: size with header, and the offset of every
// field that is not reserved, counted from the start of the message.
var layout = []struct {
	msg     Message
	typ     MessageType
	size    int
	offsets map[string]int
}{
	{&OfferChannel{}, 1, 196, map[string]int{"InterfaceType": 8, "Instance": 24, "Flags": 56, "MMIOMegabytes": 58,
		"UserDefined": 60, "SubChannel": 180, "MMIOOptional": 182, "RelID": 184, "MonitorID": 188, "Monitored": 189,
		"Dedicated": 190, "ConnectionID": 192}},
	{&RescindChannelOffer{}, 2, 12, map[string]int{"RelID": 8}},
	{&RequestOffers{}, 3, 8, map[string]int{}},
	{&AllOffersDelivered{}, 4, 8, map[string]int{}},
	{&OpenChannel{}, 5, 148, map[string]int{"RelID": 8, "OpenID": 12, "RingGPADL": 16, "TargetVP": 20, "DownstreamPage": 24, "UserData": 28}},
	{&OpenChannelResult{}, 6, 20, map[string]int{"RelID": 8, "OpenID": 12, "Status": 16}},
	{&CloseChannel{}, 7, 12, map[string]int{"RelID": 8}},
	{&GPADLHeader{}, 8, 20, map[string]int{"RelID": 8, "GPADL": 12, "RangeBufLen": 16, "RangeCount": 18}},
	{&GPADLBody{}, 9, 16, map[string]int{"MsgNumber": 8, "GPADL": 12}},
	{&GPADLCreated{}, 10, 20, map[string]int{"RelID": 8, "GPADL": 12, "Status": 16}},
	{&GPADLTeardown{}, 11, 16, map[string]int{"RelID": 8, "GPADL": 12}},
	{&GPADLTorndown{}, 12, 12, map[string]int{"GPADL": 8}},
	{&RelIDReleased{}, 13, 12, map[string]int{"RelID": 8}},
	{&InitiateContact{}, 14, 40, map[string]int{"Version": 8, "TargetVP": 12, "Interrupt": 16, "Monitor1": 24, "Monitor2": 32}},
	{&VersionResponse{}, 15, 16, map[string]int{"Supported": 8, "State": 9, "Selected": 12}},
	{&Unload{}, 16, 8, map[string]int{}},
	{&UnloadResponse{}, 17, 8, map[string]int{}},
	{&OpenReserved{}, 18, 28, map[string]int{"RelID": 8, "TargetVP": 12, "TargetSINT": 16, "RingGPADL": 20, "DownstreamPage": 24}},
	{&CloseReserved{}, 19, 20, map[string]int{"RelID": 8, "TargetVP": 12, "TargetSINT": 16}},
	{&CloseReservedResult{}, 20, 12, map[string]int{"RelID": 8}},
	{&TLConnectRequest{}, 21, 40, map[string]int{"Endpoint": 8, "Service": 24}},
	{&ModifyChannel{}, 22, 16, map[string]int{"RelID": 8, "TargetVP": 12}},
	{&TLConnectResult{}, 23, 44, map[string]int{"Endpoint": 8, "Service": 24, "Status": 40}},
	{&ModifyChannelResult{}, 24, 16, map[string]int{"RelID": 8, "Status": 12}},
}

func TestLayout(t *testing.T) {
	for _, l := range layout {
		name := l.typ.String()
		if got := l.msg.MessageType(); got != l.typ {
			t.Errorf("%s: type %d, want %d", name, got, l.typ)
		}
		if got := Size(l.msg); got != l.size {
			t.Errorf("%s: size %d, want %d", name, got, l.size)
		}
		typ, off, got := reflect.TypeOf(l.msg).Elem(), HeaderSize, map[string]int{}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Name != "_" {
				got[f.Name] = off
			}
			off += binary.Size(reflect.Zero(f.Type).Interface())
		}
		if d := cmp.Diff(l.offsets, got); d != "" {
			t.Errorf("%s: offsets (-spec +code):\n%s", name, d)
		}
	}
}

// pattern gives every byte of a message a value of its own.
func pattern(n int, typ MessageType) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	binary.LittleEndian.PutUint32(b, uint32(typ))
	binary.LittleEndian.PutUint32(b[4:], 0)
	return b
}

func TestDecodeEncodeRoundTrip(t *testing.T) {
	for _, l := range layout {
		in := pattern(l.size+5, l.typ)
		rest, err := Decode(in, l.msg)
		if err != nil {
			t.Fatalf("%v: %v", l.typ, err)
		}
		if !bytes.Equal(rest, in[l.size:]) {
			t.Errorf("%v: rest %x", l.typ, rest)
		}
		out := Encode(l.msg)
		want := append([]byte(nil), in[:l.size]...)
		switch l.typ { // reserved fields are sent as zero
		case MsgOfferChannel:
			clear(want[40:56])
		case MsgVersionResponse:
			clear(want[10:12])
		}
		if !bytes.Equal(out, want) {
			t.Errorf("%v: encoded\n%x want\n%x", l.typ, out, want)
		}
	}
}

func TestDecodeRefusesShorter(t *testing.T) {
	for _, l := range layout {
		for n := range l.size {
			if n >= HeaderSize {
				if _, err := Decode(pattern(n, l.typ), l.msg); !errors.Is(err, ErrShort) {
					t.Fatalf("%v of %d bytes: %v", l.typ, n, err)
				}
			}
		}
		if _, err := Decode(pattern(240, l.typ), l.msg); err != nil {
			t.Errorf("%v padded to 240 bytes: %v", l.typ, err)
		}
	}
	for n := range HeaderSize {
		if _, ok := TypeOf(make([]byte, n)); ok {
			t.Errorf("a type in %d bytes", n)
		}
	}
}

// The offer of a heartbeat as the guest sees it, byte by byte.
func TestGoldenOffer(t *testing.T) {
	o := OfferChannel{
		InterfaceType: TypeHeartbeat,
		Instance:      MustGUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
		Flags:         OfferNamedPipe | OfferEnumerate,
		UserDefined:   PipeUserDefined(PipeMessages, nil),
		RelID:         3,
		MonitorID:     MonitorNone,
		Dedicated:     OfferDedicated,
		ConnectionID:  0x2003,
	}
	want := "0100000000000000" + "394f1657159178 4eab55382f3bd5422d" + "919e14fde0827d4aafa62a4166cbd7c0" +
		strings.Repeat("00", 16) + "1100" + "0000" + "04000000" + strings.Repeat("00", 116) +
		"0000" + "0000" + "03000000" + "ff" + "00" + "0100" + "03200000"
	if got := hex.EncodeToString(Encode(o)); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("offer\n%s\nwant\n%s", got, want)
	}
}

func TestGoldenMessages(t *testing.T) {
	for _, c := range []struct {
		msg  Message
		want string
	}{
		{InitiateContact{Version: Version5_3, TargetVP: 1, Interrupt: ContactSINT(2, 0), Monitor1: 0x1000, Monitor2: 0x2000},
			"0e00000000000000" + "03000500" + "01000000" + "0200000000000000" + "0010000000000000" + "0020000000000000"},
		{VersionResponse{Supported: 1, Selected: 1}, "0f00000000000000" + "01000000" + "01000000"},
		{OpenChannelResult{RelID: 7, OpenID: 7, Status: 0}, "0600000000000000" + "07000000" + "07000000" + "00000000"},
		{GPADLCreated{RelID: 7, GPADL: 0xE1E10, Status: StatusGPADLFailure}, "0a00000000000000" + "07000000" + "101e0e00" + "ffff0080"},
		{GPADLTorndown{GPADL: 0xE1E10}, "0c00000000000000" + "101e0e00"},
		{UnloadResponse{}, "1100000000000000"},
	} {
		if got := hex.EncodeToString(Encode(c.msg)); got != c.want {
			t.Errorf("%v\n%s\nwant\n%s", c.msg.MessageType(), got, c.want)
		}
	}
}

func TestContactSINT(t *testing.T) {
	m := InitiateContact{Interrupt: ContactSINT(2, 1) | 0xABCD<<16}
	if m.SINT() != 2 || m.VTL() != 1 {
		t.Errorf("sint %d vtl %d", m.SINT(), m.VTL())
	}
}

func TestGUIDWireOrder(t *testing.T) {
	want, _ := hex.DecodeString("635161f83edfc546913ff2d2f965ed0e")
	if !bytes.Equal(TypeNIC[:], want) {
		t.Errorf("NIC type %x, want %x", TypeNIC[:], want)
	}
	if s := TypeNIC.String(); s != "f8615163-df3e-46c5-913f-f2d2f965ed0e" {
		t.Error(s)
	}
	if TypeNIC.Data1() != 0xf8615163 {
		t.Errorf("%x", TypeNIC.Data1())
	}
	b, err := json.Marshal(map[string]any{"t": TypeNIC, "v": Version5_3})
	if err != nil || string(b) != `{"t":"f8615163-df3e-46c5-913f-f2d2f965ed0e","v":"5.3"}` {
		t.Errorf("%s %v", b, err)
	}
	var g GUID
	if err := json.Unmarshal([]byte(`"F8615163-DF3E-46C5-913F-F2D2F965ED0E"`), &g); err != nil || g != TypeNIC {
		t.Errorf("%v %v", g, err)
	}
	for _, bad := range []string{"", "f8615163", "f8615163-df3e-46c5-913f-f2d2f965ed0", "f8615163xdf3e-46c5-913f-f2d2f965ed0e", "g8615163-df3e-46c5-913f-f2d2f965ed0e"} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q parses", bad)
		}
		if err := g.UnmarshalText([]byte(bad)); err == nil || g != TypeNIC {
			t.Errorf("%q unmarshals", bad)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("MustGUID took nonsense")
		}
	}()
	MustGUID("nonsense")
}

func TestDescriptor(t *testing.T) {
	b := Descriptor{Type: PacketGPADirect, Offset8: 5, Length8: 13, Flags: CompletionRequested, TransactionID: TransactionReset}.Append(nil)
	if got := hex.EncodeToString(b); got != "090005000d000100fcffffffffffffff" {
		t.Error(got)
	}
	if d := DecodeDescriptor(b); d != (Descriptor{PacketGPADirect, 5, 13, 1, 0xFFFFFFFFFFFFFFFC}) {
		t.Errorf("%+v", d)
	}
}

func TestPipe(t *testing.T) {
	b := append(AppendPipeHeader(nil, 3), 'a', 'b', 'c', 0, 0)
	if p, ok := PipePayload(b); !ok || string(p) != "abc" {
		t.Errorf("%q %v", p, ok)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "short": b[:7], "type": AppendPipeHeader([]byte{2, 0, 0, 0, 0, 0, 0, 0}, 0),
		"size": AppendPipeHeader(nil, 1), "huge": AppendPipeHeader(nil, 0xFFFFFFFF),
	} {
		if _, ok := PipePayload(bad); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if p, ok := PipePayload(AppendPipeHeader(nil, 0)); !ok || len(p) != 0 {
		t.Error("an empty pipe message is legal")
	}
	defer func() {
		if recover() == nil {
			t.Error("113 bytes of user data fit")
		}
	}()
	PipeUserDefined(PipeBytes, make([]byte, 113))
}

func TestNames(t *testing.T) {
	for want, s := range map[string]interface{ String() string }{
		"OFFERCHANNEL": MsgOfferChannel, "RESUME": MsgResume, "message type 30": MessageType(30),
		"in-band": PacketInBand, "transfer-pages": PacketTransferPages, "GPA-direct": PacketGPADirect,
		"completion": PacketCompletion, "packet type 8": PacketType(8), "2.4": VersionWin8,
	} {
		if s.String() != want {
			t.Errorf("%q, want %q", s.String(), want)
		}
	}
}

func TestDecodeWrongTypeIsABug(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a GPADL_TORNDOWN decoded as RELID_RELEASED")
		}
	}()
	Decode(Encode(GPADLTorndown{}), &RelIDReleased{})
}
