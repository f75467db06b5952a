package ic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
	"github.com/hvpost/hvpost/vmbus/ring"
)

// frameworks are the versions of the message format offered to guests.
var frameworks = []Version{{1, 0}, {3, 0}}

// ErrNoVersion reports that the guest accepts no version that was offered.
var ErrNoVersion = errors.New("guest accepts no version of this service")

// offer returns the offer of a service: a pipe in message mode.
func offer(name string, typ proto.GUID, instance string) vmbus.Offer {
	return vmbus.Offer{
		Name:        name,
		Type:        typ,
		Instance:    proto.MustGUID(instance),
		Flags:       proto.OfferNamedPipe | proto.OfferEnumerate,
		UserDefined: proto.PipeUserDefined(proto.PipeMessages, nil),
	}
}

// A session is a service on an open channel after its negotiation.
type session struct {
	ch        *vmbus.Channel
	typ       MessageType
	framework Version
	version   Version
	id        uint8 // transaction id of the last request
}

// negotiate agrees with the guest on versions (Linux vmbus_prep_negotiate_resp).
func negotiate(ctx context.Context, ch *vmbus.Channel, typ MessageType, versions []Version) (*session, error) {
	var body []byte
	body = binary.LittleEndian.AppendUint16(body, uint16(len(frameworks)))
	body = binary.LittleEndian.AppendUint16(body, uint16(len(versions)))
	body = binary.LittleEndian.AppendUint32(body, 0)
	for _, v := range slices.Concat(frameworks, versions) {
		body = binary.LittleEndian.AppendUint16(body, v.Major)
		body = binary.LittleEndian.AppendUint16(body, v.Minor)
	}
	s := &session{ch: ch, typ: MsgNegotiate}
	status, answer, err := s.exchange(ctx, body)
	if err != nil {
		return nil, err
	}
	if len(answer) < 16 || status != StatusOK || binary.LittleEndian.Uint16(answer) != 1 || binary.LittleEndian.Uint16(answer[2:]) != 1 {
		return nil, ErrNoVersion
	}
	chosen := func(at int) Version {
		return Version{binary.LittleEndian.Uint16(answer[at:]), binary.LittleEndian.Uint16(answer[at+2:])}
	}
	s.typ, s.framework, s.version = typ, chosen(8), chosen(12)
	if !slices.Contains(frameworks, s.framework) || !slices.Contains(versions, s.version) {
		return nil, fmt.Errorf("%w: guest chose framework %v, version %v", ErrNoVersion, s.framework, s.version)
	}
	return s, nil
}

// exchange sends a request and waits for its answer, whose body is valid until
// the next one.
func (s *session) exchange(ctx context.Context, body []byte) (Status, []byte, error) {
	s.id++
	request := Encode(Header{Framework: s.framework, Type: s.typ, Message: s.version, TransactionID: s.id, Flags: FlagTransaction | FlagRequest}, body)
	if err := s.ch.Send(ctx, &ring.Packet{Type: proto.PacketInBand, Payload: request}); err != nil {
		return 0, nil, err
	}
	var p ring.Packet
	if err := s.ch.Recv(ctx, &p); err != nil {
		return 0, nil, err
	}
	if p.Type != proto.PacketInBand {
		return 0, nil, fmt.Errorf("%w: %v packet", ErrMessage, p.Type)
	}
	h, answer, err := Decode(p.Payload)
	if err != nil {
		return 0, nil, err
	}
	if h.Type != s.typ || h.Flags&FlagResponse == 0 || h.TransactionID != s.id {
		return 0, nil, fmt.Errorf("%w: type %d, flags %#x, transaction %d answers type %d, transaction %d",
			ErrMessage, h.Type, h.Flags, h.TransactionID, s.typ, s.id)
	}
	// The guest's next look at its ring finds room there.
	s.ch.Reader().Commit()
	return h.Status, answer, nil
}
