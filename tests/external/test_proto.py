"""The protocol keeps its own rules: everything is documented, and names follow the usual style."""

import re
import unittest

from google.protobuf import descriptor_pb2

import wire

SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PASCAL = re.compile(r"([A-Z][a-z0-9]+)+")
# Paths in a descriptor's source information are made of these field numbers.
MESSAGE, ENUM, SERVICE = 4, 5, 6
FIELD, NESTED, NESTED_ENUM, ONEOF, VALUE, METHOD = 2, 3, 4, 8, 2, 2


def described(file):
    """Every element of a file as (path, full name, descriptor)."""
    def of_message(path, prefix, message):
        name = f"{prefix}.{message.name}"
        yield path, name, message
        for number, field in enumerate(message.field):
            yield (*path, FIELD, number), f"{name}.{field.name}", field
        for number, oneof in enumerate(message.oneof_decl):
            if not oneof.name.startswith("_"):
                yield (*path, ONEOF, number), f"{name}.{oneof.name}", oneof
        for number, nested in enumerate(message.nested_type):
            yield from of_message((*path, NESTED, number), name, nested)
        for number, nested in enumerate(message.enum_type):
            yield from of_enum((*path, NESTED_ENUM, number), name, nested)

    def of_enum(path, prefix, enum):
        name = f"{prefix}.{enum.name}"
        yield path, name, enum
        for number, value in enumerate(enum.value):
            yield (*path, VALUE, number), f"{name}.{value.name}", value

    for number, message in enumerate(file.message_type):
        yield from of_message((MESSAGE, number), file.package, message)
    for number, enum in enumerate(file.enum_type):
        yield from of_enum((ENUM, number), file.package, enum)
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (SERVICE, number), name, service
        for at, method in enumerate(service.method):
            yield (SERVICE, number, METHOD, at), f"{name}.{method.name}", method


class Protocol(unittest.TestCase):
    """Everything below `proto/streambus/v1`."""

    @classmethod
    def setUpClass(cls):
        files = descriptor_pb2.FileDescriptorSet.FromString(wire.DESCRIPTORS.read_bytes()).file
        cls.files = [file for file in files if file.package == "streambus.v1"]
        cls.elements = [(file, element) for file in cls.files for element in described(file)]

    def named(self, kind):
        return [(name, one) for _, (_, name, one) in self.elements if isinstance(one, kind)]

    def test_something_is_checked(self):
        self.assertGreater(len(self.elements), 150)

    def test_every_service_rpc_message_field_and_value_is_documented(self):
        missing = []
        for file in self.files:
            comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
            missing += [name for path, name, _ in described(file) if not comments.get(path, "").strip()]
        self.assertEqual(missing, [])

    def test_every_rpc_has_messages_of_its_own(self):
        wrong = [
            name
            for name, method in self.named(descriptor_pb2.MethodDescriptorProto)
            if method.input_type != f".streambus.v1.{method.name}Request"
            or method.output_type != f".streambus.v1.{method.name}Response"
        ]
        self.assertEqual(wrong, [])

    def test_services_and_messages_are_named_in_the_usual_style(self):
        services = self.named(descriptor_pb2.ServiceDescriptorProto)
        self.assertEqual([name for name, one in services if not one.name.endswith("Service")], [])
        messages = self.named(descriptor_pb2.DescriptorProto)
        self.assertEqual([name for name, one in messages if not PASCAL.fullmatch(one.name)], [])
        fields = self.named(descriptor_pb2.FieldDescriptorProto)
        self.assertEqual([name for name, one in fields if not SNAKE.fullmatch(one.name)], [])

    def test_enum_values_carry_their_enums_name_and_zero_is_unspecified(self):
        for name, enum in self.named(descriptor_pb2.EnumDescriptorProto):
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
            self.assertEqual([value.name for value in enum.value if not value.name.startswith(prefix)], [], name)
            self.assertEqual((enum.value[0].number, enum.value[0].name), (0, prefix + "UNSPECIFIED"), name)


if __name__ == "__main__":
    unittest.main()
