// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

interface IIdentityRegistry {
    function isAuthorizedOrOwner(address spender, uint256 agentId) external view returns (bool);
}

/// @title What the reputation and validation registries ask of the identity registry.
abstract contract AgentRights {
    IIdentityRegistry private immutable _identityRegistry;

    constructor(address identityRegistry) {
        require(identityRegistry != address(0), "bad identity");
        _identityRegistry = IIdentityRegistry(identityRegistry);
    }

    function getIdentityRegistry() external view returns (address) {
        return address(_identityRegistry);
    }

    function getVersion() external pure returns (string memory) {
        return "2.0.0";
    }

    /// @dev Reverts with the identity registry's own error when the agent does not exist.
    function _controls(address account, uint256 agentId) internal view returns (bool) {
        return _identityRegistry.isAuthorizedOrOwner(account, agentId);
    }

    /// @dev An empty filter matches everything.
    function _matches(string memory filter, string memory value) internal pure returns (bool) {
        return bytes(filter).length == 0 || keccak256(bytes(filter)) == keccak256(bytes(value));
    }
}
