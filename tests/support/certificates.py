"""Certificates for tests: a CA and what it signs, made by python3-cryptography."""
import datetime
import ipaddress
import os
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOCAL = ("127.0.0.1", "localhost")


def _alternative(name):
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Authority:
    """A CA of its own; `file` is its certificate."""

    def __init__(self, folder, name="ca"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.key = name, ec.generate_private_key(ec.SECP256R1())
        self.file = self.folder / f"{name}.pem"
        certificate = self._builder(name, self.key, 30).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(self.key, hashes.SHA256())
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, common_name, key, days):
        def subject(text):
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.timezone.utc)
        return (x509.CertificateBuilder().subject_name(subject(common_name)).issuer_name(subject(self.name))
                .public_key(key.public_key()).serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=2))
                .not_valid_after(now + datetime.timedelta(days=days)))

    def issue(self, file_name, *names, days=30):
        """(certificate file, key file). Each is replaced by a rename, the key last."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(file_name, key, days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        files = self.folder / f"{file_name}.pem", self.folder / f"{file_name}.key"
        for file, data in zip(files, (
                certificate.public_bytes(serialization.Encoding.PEM),
                key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                  serialization.NoEncryption()))):
            new = file.with_suffix(file.suffix + ".new")
            new.write_bytes(data)
            os.replace(new, file)
        return files
