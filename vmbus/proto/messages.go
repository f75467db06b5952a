package proto

import "fmt"

// A Version of VMBus is major<<16 | minor.
type Version uint32

// Protocol versions that a guest may ask for.
const (
	VersionWin8    Version = 0x00020004 // 2.4: event flag per channel, sub-channels
	VersionWin81   Version = 0x00030000 // 3.0: target VP of messages, UNLOAD
	Version4_0     Version = 0x00040000 // 4.0: hv_sock
	Version4_1     Version = 0x00040001 // 4.1: MODIFYCHANNEL, TL_CONNECT_RESULT
	Version5_0     Version = 0x00050000 // 5.0: message connection of its own
	Version5_1     Version = 0x00050001
	Version5_2     Version = 0x00050002
	Version5_3     Version = 0x00050003 // 5.3: MODIFYCHANNEL_RESPONSE
	VersionInvalid Version = 0
)

// Versions lists the versions above, oldest first.
var Versions = []Version{VersionWin8, VersionWin81, Version4_0, Version4_1, Version5_0, Version5_1, Version5_2, Version5_3}

func (v Version) String() string { return fmt.Sprintf("%d.%d", uint32(v)>>16, uint32(v)&0xFFFF) }

// MarshalText prints the version as in 5.3.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// A RelID names a channel inside one VMBus connection; it is also the number
// of the channel's event flag. 0 names none.
type RelID uint32

// A GPADLID is the guest's name of a GPADL (Linux: the gpadl handle).
type GPADLID uint32

// Status values of this package's results. The guest looks only for zero.
const (
	StatusSuccess           uint32 = 0
	StatusUnsuccessful      uint32 = 0xC0000001
	StatusInvalidParameter  uint32 = 0xC000000D
	StatusConnectionRefused uint32 = 0xC0000236
	StatusGPADLFailure      uint32 = 0x8000FFFF
)

// Connection states of VersionResponse.
const (
	ConnectionSuccessful     uint8 = 0
	ConnectionLowResources   uint8 = 1
	ConnectionUnknownFailure uint8 = 2
)

// NoInterrupts as a target VP asks for no interrupts at all.
const NoInterrupts uint32 = 0xFFFFFFFF

// UserDataSize is the size in bytes of the device's own part of an offer and
// of OPENCHANNEL.
const UserDataSize = 120

type (
	// OfferChannel announces a channel.
	OfferChannel struct {
		InterfaceType GUID
		Instance      GUID
		_             [16]byte
		Flags         OfferFlags
		MMIOMegabytes uint16
		UserDefined   [UserDataSize]byte // of a named pipe: see PipeUserDefined
		SubChannel    uint16             // 0: primary
		MMIOOptional  uint16             // MiB
		RelID         RelID
		MonitorID     uint8  // 0xFF: none
		Monitored     uint8  // bit 0: the monitor id is allocated
		Dedicated     uint16 // bit 0: interrupt of its own
		ConnectionID  uint32
	}
	// RescindChannelOffer takes an offer back.
	RescindChannelOffer struct{ RelID RelID }
	// RequestOffers asks for all offers, once per connection.
	RequestOffers struct{}
	// AllOffersDelivered ends the offers that RequestOffers asked for.
	AllOffersDelivered struct{}
	// OpenChannel opens an offered channel over a ring GPADL.
	OpenChannel struct {
		RelID          RelID
		OpenID         uint32 // echoed in the result
		RingGPADL      GPADLID
		TargetVP       uint32
		DownstreamPage uint32 // page of the GPADL at which the host→guest ring starts
		UserData       [UserDataSize]byte
	}
	// OpenChannelResult answers OpenChannel.
	OpenChannelResult struct {
		RelID  RelID
		OpenID uint32
		Status uint32
	}
	// CloseChannel closes an open channel. It has no answer.
	CloseChannel struct{ RelID RelID }
	// GPADLHeader starts a GPADL; its ranges follow, see RangeParser.
	GPADLHeader struct {
		RelID       RelID
		GPADL       GPADLID
		RangeBufLen uint16 // bytes of ranges; wraps in Linux, so nobody may trust it
		RangeCount  uint16
	}
	// GPADLBody goes on with the ranges of a GPADL.
	GPADLBody struct {
		MsgNumber uint32 // Linux leaves 0
		GPADL     GPADLID
	}
	// GPADLCreated answers the last message of a GPADL.
	GPADLCreated struct {
		RelID  RelID
		GPADL  GPADLID
		Status uint32
	}
	// GPADLTeardown asks the host to forget a GPADL.
	GPADLTeardown struct {
		RelID RelID
		GPADL GPADLID
	}
	// GPADLTorndown tells that the host does not touch the pages any more.
	GPADLTorndown struct{ GPADL GPADLID }
	// RelIDReleased gives the relid of a rescinded channel back.
	RelIDReleased struct{ RelID RelID }
	// InitiateContact asks for a version. Interrupt is the GPA of the interrupt
	// page before 5.0; from 5.0 on see its methods.
	InitiateContact struct {
		Version   Version
		TargetVP  uint32
		Interrupt uint64
		Monitor1  uint64 // GPA, parent to child
		Monitor2  uint64 // GPA, child to parent
	}
	// VersionResponse answers InitiateContact. Selected is the connection id
	// for all further messages from 5.0 on, the version before.
	VersionResponse struct {
		Supported uint8
		State     uint8
		_         uint16
		Selected  uint32
	}
	// Unload ends the connection.
	Unload struct{}
	// UnloadResponse tells that the host touches nothing of the guest any more.
	UnloadResponse struct{}
	// OpenReserved opens a channel outside the connection; debuggers use it.
	OpenReserved struct {
		RelID          RelID
		TargetVP       uint32
		TargetSINT     uint32
		RingGPADL      GPADLID
		DownstreamPage uint32
	}
	// CloseReserved closes what OpenReserved opened.
	CloseReserved struct {
		RelID      RelID
		TargetVP   uint32
		TargetSINT uint32
	}
	// CloseReservedResult answers CloseReserved.
	CloseReservedResult struct{ RelID RelID }
	// TLConnectRequest asks for an hv_sock connection.
	TLConnectRequest struct {
		Endpoint GUID // the guest's end
		Service  GUID // the host's
	}
	// TLConnectResult refuses a TLConnectRequest (an offer accepts it).
	TLConnectResult struct {
		Endpoint GUID
		Service  GUID
		Status   uint32
	}
	// ModifyChannel moves the interrupt of an open channel to another VP.
	ModifyChannel struct {
		RelID    RelID
		TargetVP uint32
	}
	// ModifyChannelResult answers ModifyChannel from 5.3 on.
	ModifyChannelResult struct {
		RelID  RelID
		Status uint32
	}
)

// SINT returns the synthetic interrupt source for messages that a guest of 5.0
// or newer asks for.
func (m InitiateContact) SINT() uint8 { return uint8(m.Interrupt) }

// VTL returns the virtual trust level that messages shall go to (5.0).
func (m InitiateContact) VTL() uint8 { return uint8(m.Interrupt >> 8) }

// ContactSINT builds the Interrupt field of a guest of 5.0 or newer.
func ContactSINT(sint, vtl uint8) uint64 { return uint64(sint) | uint64(vtl)<<8 }

func (OfferChannel) MessageType() MessageType        { return MsgOfferChannel }
func (RescindChannelOffer) MessageType() MessageType { return MsgRescindChannelOffer }
func (RequestOffers) MessageType() MessageType       { return MsgRequestOffers }
func (AllOffersDelivered) MessageType() MessageType  { return MsgAllOffersDelivered }
func (OpenChannel) MessageType() MessageType         { return MsgOpenChannel }
func (OpenChannelResult) MessageType() MessageType   { return MsgOpenChannelResult }
func (CloseChannel) MessageType() MessageType        { return MsgCloseChannel }
func (GPADLHeader) MessageType() MessageType         { return MsgGPADLHeader }
func (GPADLBody) MessageType() MessageType           { return MsgGPADLBody }
func (GPADLCreated) MessageType() MessageType        { return MsgGPADLCreated }
func (GPADLTeardown) MessageType() MessageType       { return MsgGPADLTeardown }
func (GPADLTorndown) MessageType() MessageType       { return MsgGPADLTorndown }
func (RelIDReleased) MessageType() MessageType       { return MsgRelIDReleased }
func (InitiateContact) MessageType() MessageType     { return MsgInitiateContact }
func (VersionResponse) MessageType() MessageType     { return MsgVersionResponse }
func (Unload) MessageType() MessageType              { return MsgUnload }
func (UnloadResponse) MessageType() MessageType      { return MsgUnloadResponse }
func (OpenReserved) MessageType() MessageType        { return MsgOpenReserved }
func (CloseReserved) MessageType() MessageType       { return MsgCloseReserved }
func (CloseReservedResult) MessageType() MessageType { return MsgCloseReservedResult }
func (TLConnectRequest) MessageType() MessageType    { return MsgTLConnectRequest }
func (TLConnectResult) MessageType() MessageType     { return MsgTLConnectResult }
func (ModifyChannel) MessageType() MessageType       { return MsgModifyChannel }
func (ModifyChannelResult) MessageType() MessageType { return MsgModifyChannelResult }
