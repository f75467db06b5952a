package proto

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// A GUID is a globally unique identifier in wire order: the first three fields
// little-endian, the last eight bytes as printed. Linux names devices in sysfs
// by the same reading of the bytes.
type GUID [16]byte

// guidText maps the order of the printed bytes to the order on the wire.
var guidText = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

// ParseGUID reads the form f8615163-df3e-46c5-913f-f2d2f965ed0e, in either
// case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("GUID %q: want the form 00000000-0000-0000-0000-000000000000", s)
	}
	raw, err := hex.DecodeString(s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return g, fmt.Errorf("GUID %q: %w", s, err)
	}
	for i, b := range raw {
		g[guidText[i]] = b
	}
	return g, nil
}

// MustGUID is ParseGUID for constants. It panics on a malformed one.
func MustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

func (g GUID) String() string {
	var t [16]byte
	for i, w := range guidText {
		t[i] = g[w]
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", t[0:4], t[4:6], t[6:8], t[8:10], t[10:16])
}

// MarshalText prints the GUID, so that it shows as text in JSON.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText parses what MarshalText prints.
func (g *GUID) UnmarshalText(b []byte) error {
	v, err := ParseGUID(string(b))
	if err == nil {
		*g = v
	}
	return err
}

// Data1 returns the first field of the GUID. hv_sock keeps a port there.
func (g GUID) Data1() uint32 { return binary.LittleEndian.Uint32(g[:4]) }

// Interface types of the synthetic devices (Linux include/linux/hyperv.h).
var (
	TypeNIC       = MustGUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")
	TypeIDE       = MustGUID("32412632-86cb-44a2-9b5c-50d1417354f5")
	TypeSCSI      = MustGUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
	TypeFC        = MustGUID("2f9bcc4a-0069-4af3-b76b-6fd0be528cda")
	TypeShutdown  = MustGUID("0e0b6031-5213-4934-818b-38d90ced39db")
	TypeTimeSync  = MustGUID("9527e630-d0ae-497b-adce-e80ab0175caf")
	TypeHeartbeat = MustGUID("57164f39-9115-4e78-ab55-382f3bd5422d")
	TypeKVP       = MustGUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
	TypeVSS       = MustGUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")
	TypeFcopy     = MustGUID("34d14be3-dee4-41c8-9ae7-6b174977c192")
	TypeBalloon   = MustGUID("525074dc-8985-46e2-8057-a307dc18a502")
	TypeMouse     = MustGUID("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")
	TypeKeyboard  = MustGUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
	TypeVideo     = MustGUID("da0a7802-e377-4aac-8e77-0558eb1073f8")
	TypePCI       = MustGUID("44c4f61d-4444-4400-9d52-802e27ede19f")
	TypeND        = MustGUID("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501")
)
